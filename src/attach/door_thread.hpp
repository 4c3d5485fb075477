#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "attach/channel.hpp"
#include "attach/door.hpp"
#include "attach/engine_record.hpp"
#include "attach/memory_file.hpp"
#include "attach/message.hpp"
#include "base/error.hpp"
#include "base/private_directory.hpp"
#include "base/unique_fd.hpp"
#include "base/wait.hpp"

namespace awex::attach {

/// How long an engine may take to say who it is.
inline constexpr Seconds kSlowestHello{10};
/// How long one may take to read what needs no answer.
inline constexpr Seconds kSlowestReader{5};

/// What a door's thread and the rank's main thread have in common: the thread lets an engine in and
/// reads what it says, the main thread looks at what was said, waits for it, and answers.
struct Door::Shared {
  /// Opens the door. Throws run-time and request errors.
  Shared(std::string job, EngineRecord of, std::function<void()> on_news);
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  Shared(Shared&&) = delete;
  Shared& operator=(Shared&&) = delete;
  ~Shared();

  /// Who has come to the door and has not said who it is.
  struct Guest {
    std::unique_ptr<Channel> channel;
    int pid = 0;
    Deadline patience{kSlowestHello};
  };

  // On the thread
  void listen();
  void take_in();
  void look_at(Guest& guest);
  void let_in(Guest& guest, const Frame& frame);
  void hear();
  void take(Frame& frame);
  void take_loan(ToRank message, std::vector<UniqueFd>& fds);
  void take_withdrawal();
  void note_loss(const std::string& why);

  // On the main thread
  [[nodiscard]] bool is_here() const {
    return state == State::kGreeted || state == State::kAttached || state == State::kSealed;
  }
  /// The mutex is held, by these as by `note_loss`.
  [[nodiscard]] std::string describe() const;
  /// "the inference engine of rank 3, vllm 0.32.0 (pid 4711),"
  [[nodiscard]] std::string who() const;
  [[nodiscard]] Error lost_error() const;
  [[nodiscard]] bool is_lost_since(uint64_t number) const {
    return !is_here() || engine_number != number;
  }
  void send(const ToEngine& message, std::span<const int> fds, const Deadline& deadline,
            WaitMonitor& monitor);
  static void refuse_stranger(UniqueFd socket);
  void say_why(const std::shared_ptr<Channel>& engine, const Error& error);
  void send_to(const std::shared_ptr<Channel>& to, const ToEngine& message,
               std::span<const int> fds, const Deadline& deadline, WaitMonitor& monitor) {
    const std::lock_guard lock_send(send_mutex);
    to->send(encode(message), fds, deadline, monitor);
  }

  const std::string job_directory;
  EngineRecord record;
  const std::function<void()> wake;
  const PrivateDirectory own;
  UniqueFd listener;
  UniqueFd stop;
  OwnPage page;

  mutable std::mutex mutex;  ///< Of all below.
  State state = State::kAbsent;
  std::shared_ptr<Channel> channel;
  uint64_t engine_number = 0;  ///< How many have come.
  ToRank hello;
  int pid = 0;
  std::string lost_who;  ///< As `who`, before another came.
  std::string lost_at;
  std::string why_lost;
  bool has_detached = false;  ///< In order, rather than died.
  std::optional<ToRank> seal;
  Loan loan;                               ///< As far as it has come.
  std::map<std::string, uint64_t> booked;  ///< The engine's own bytes, by what they are for.
  bool ready = false;
  bool in_command = false;  ///< Its consent is in use.
  EngineWish wish = EngineWish::kNone;
  uint64_t asked = 0;
  uint64_t acked = 0;
  std::optional<Error> ack_error;  ///< Of the last that was answered.
  std::string kept;
  std::optional<Error> end;  ///< That the engine is to be told of.

  std::mutex send_mutex;      ///< One frame at a time.
  std::vector<Guest> guests;  ///< The thread's.
  std::thread thread;
};

}  // namespace awex::attach
