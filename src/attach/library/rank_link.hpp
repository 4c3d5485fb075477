#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "attach/channel.hpp"
#include "attach/engine_record.hpp"
#include "attach/message.hpp"
#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "base/wait.hpp"

namespace awex::attach {

using Clock = std::chrono::steady_clock;

/// Times that are longer end nothing.
inline constexpr Seconds kLongestWait{1e8};
/// The moment when `time` from now has passed.
[[nodiscard]] Clock::time_point after(Seconds time);

/// Why a rank has ended a conversation, of its kEnd.
[[nodiscard]] Error reason_of(const ToEngine& end);

/// An engine's connection to its rank, and the rank's process as far as it can be seen from here.
/// Once the rank is lost it stays lost: calls that need it throw that Error(kPeerLost). Not thread
/// safe.
class RankLink {
 public:
  /// Takes a connected socket. `job` is the job's directory, for messages.
  RankLink(UniqueFd socket, const EngineRecord& rank, std::string job);

  [[nodiscard]] int rank() const { return rank_; }
  /// The job's directory.
  [[nodiscard]] const std::string& job() const { return job_; }

  [[nodiscard]] bool is_lost() const { return lost_.has_value(); }
  /// The rank is lost as its end of the connection is gone, without a word.
  [[nodiscard]] bool has_hung_up() const { return has_hung_up_; }
  void expect_there() const {
    if (lost_) throw Error(*lost_);
  }

  /// Descriptors stay the caller's. A rank that has hung up may have said why before.
  void say(const ToRank& message, std::span<const int> fds = {});
  /// The next frame, waited for until then.
  [[nodiscard]] std::optional<Frame> receive(Clock::time_point until);
  /// Whether the rank has hung up, maybe with something left to hear.
  [[nodiscard]] bool has_ended() const { return is_lost() || channel_->has_ended(); }
  /// Hangs up: from here on the rank is lost. Throws that.
  [[noreturn]] void lose(const Error& error);
  /// Loses a rank that is stopped, which finds nobody when it goes on.
  [[noreturn]] void lose_stopped();

  /// Whether its process is stopped, by a signal or a debugger.
  [[nodiscard]] bool is_stopped() const;
  /// Waits a little for the process of a lost rank to end. A rank that only this engine takes for
  /// lost may still write its memory: throws a request error.
  void expect_gone() const;

 private:
  /// Why the rank has hung up, if it has said so.
  [[nodiscard]] std::optional<Error> last_words();
  [[noreturn]] void lose_silent(const Error& error);
  /// False where that cannot be known.
  [[nodiscard]] bool is_running() const;

  std::optional<Channel> channel_;  ///< Until the rank is lost.
  std::string job_;
  int rank_;
  int pid_;
  std::optional<uint64_t> start_time_;  ///< ProcessStat::start_time, where it can be known.
  std::optional<Error> lost_;
  bool has_hung_up_ = false;
};

}  // namespace awex::attach
