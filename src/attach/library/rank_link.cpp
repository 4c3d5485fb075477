#include "attach/library/rank_link.hpp"

#include <algorithm>
#include <thread>
#include <utility>

#include "base/node_identity.hpp"
#include "base/process_activity.hpp"

namespace awex::attach {
namespace {

/// How long a rank may take to read a message: its door has a thread of its own.
constexpr Seconds kSlowestReader{60};
/// How often a wait looks whether the rank is there.
constexpr Seconds kSleep{1};

}  // namespace

Clock::time_point after(Seconds time) {
  return Clock::now() + as_duration(std::min(time, kLongestWait));
}

Error reason_of(const ToEngine& end) {
  return end.error ? *end.error : Error(ExitCode::kPeerLost, "it was ended in order");
}

RankLink::RankLink(UniqueFd socket, const EngineRecord& rank, std::string job)
    : job_(std::move(job)), rank_(rank.rank), pid_(rank.pid) {
  channel_.emplace(std::move(socket));
  if (rank.pid_namespace != own_pid_namespace()) return;
  const auto process = process_stat_of(pid_);
  if (process) start_time_ = process->start_time;
}

void RankLink::say(const ToRank& message, std::span<const int> fds) {
  expect_there();
  NoMonitor monitor;
  try {
    channel_->send(encode(message), fds, Deadline(kSlowestReader), monitor);
  } catch (const Error& error) {
    if (const auto words = last_words()) lose(*words);
    lose_silent(error);
  }
}

std::optional<Error> RankLink::last_words() {
  try {
    while (const auto frame = channel_->receive()) {
      const auto message = decode_to_engine(frame->text);
      if (message.kind == ToEngine::Kind::kEnd) return reason_of(message);
    }
  } catch (const Error&) {  // It has said nothing.
  }
  return std::nullopt;
}

std::optional<Frame> RankLink::receive(Clock::time_point until) {
  expect_there();
  try {
    while (true) {
      if (auto frame = channel_->receive()) return frame;
      const auto now = Clock::now();
      if (now >= until) return std::nullopt;
      channel_->wait_readable(std::min<Seconds>(until - now, kSleep));
    }
  } catch (const Error& error) {
    lose_silent(error);
  }
}

void RankLink::lose_silent(const Error& error) {
  has_hung_up_ = error.code() == ExitCode::kPeerLost;
  lose(error);
}

void RankLink::lose(const Error& error) {
  const std::string stays =
      "what is mapped here stays, and a trainer's memory that is not comes back by awex_restore; "
      "then start the job again, detach and attach to it";
  lost_.emplace(ExitCode::kPeerLost,
                fmt::format("rank {} of the job at \"{}\" is lost: {}", rank_, job_, error.what()),
                error.hint().empty() ? stays : fmt::format("{}; {}", error.hint(), stays));
  channel_.reset();
  throw Error(*lost_);
}

void RankLink::lose_stopped() {
  lose({ExitCode::kDeadline, fmt::format("its process {} is stopped", pid_)});
}

bool RankLink::is_stopped() const { return start_time_ && awex::is_stopped(pid_); }

bool RankLink::is_running() const {
  if (!start_time_) return false;
  const auto now = process_stat_of(pid_);
  return now && now->start_time == *start_time_ && !now->has_ended();
}

void RankLink::expect_gone() const {
  constexpr Seconds kDying{5};
  const Deadline deadline(kDying);
  while (is_running()) {
    if (deadline.expired()) {
      throw request_error(
          fmt::format(
              "rank {} of the job is lost to this engine, but its process {} is there still", rank_,
              pid_),
          "end that job first (awex-colocate stop --job DIR, or kill it)");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace awex::attach
