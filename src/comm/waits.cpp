#include "comm/waits.hpp"

#include <sched.h>

#include <chrono>
#include <thread>

namespace awex {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

}  // namespace

void Waits::poll() { poll(kInWait); }

void Waits::poll_at_rest() { poll({milliseconds(10), milliseconds(50)}); }

/// Returns whether something may have happened. A command often follows the last one soon.
bool Waits::pause_at_rest(Clock::duration rested) {
  constexpr Seconds kLongestSleep{0.1};
  if (rested < milliseconds(1)) {
    ::sched_yield();
  } else if (rested < milliseconds(20)) {
    std::this_thread::sleep_for(microseconds(50));
  } else if (world_.is_rung() ? world_.bell().wait(kLongestSleep)
                              : arrivals_.sleep(world_.bell())) {
    next_listen_ = {};
    return true;
  }
  return false;
}

void Waits::poll(const Intervals& intervals, const std::function<void()>& when_asked) {
  failures_.throw_known();
  const int signal_number = failures_.pending_signal();
  const auto time = Clock::now();
  if (signal_number == 0 && time < next_listen_) return;
  next_listen_ = time + intervals.listen;
  failures_.listen();
  failures_.throw_known();
  if (!when_asked) {
    failures_.answer_question();
  } else if (failures_.take_question()) {
    when_asked();
  }
  progress_.exchange();
  progress_.look_for_silent();
  if (interrupt_ && !failures_.is_recovering()) interrupt();
  if (signal_number != 0 || time >= next_look_) {
    next_look_ = time + intervals.look;
    failures_.look_for_lost();
    roll_call_.exchange();
  }
  if (signal_number != 0) failures_.look_into_signal(signal_number);
}

void Waits::interrupt() {
  try {
    interrupt_();
  } catch (const Error& error) {
    failures_.fail(error);
  }
}

void Waits::call_rest_hook() {
  const auto time = Clock::now();
  if (time < next_rest_) return;
  next_rest_ = time + milliseconds(100);
  try {
    rest_hook_();
  } catch (const Error& error) {
    failures_.fail(error);
  }
}

void Waits::wait_for_others(Requests& requests, const std::string& deed,
                            std::span<const WireError> verdicts,
                            const std::function<void(const std::vector<int>&)>& look) {
  const auto give_up = [&] {
    const auto* cause = first_cause(verdicts);
    const auto missing = requests.missing();
    failures_.give_up_on(missing);
    failures_.announce_and_fail(cause != nullptr ? from_wire(*cause) : world_.late(missing, deed));
  };
  const auto done = [&] {
    if (requests.test()) return true;
    if (look) look(requests.missing());
    return false;
  };
  wait(done, kRankZeroGrace, give_up, give_up);
}

void Waits::wait_for_all(const std::function<bool()>& done, const std::string& what) {
  roll_call_.begin(what);
  if (world_.rank() != 0) {
    wait_for_rank_zero(done, fmt::format("completed '{}'", what));
  } else {
    bool is_asked = false;
    const auto is_done = [&] {
      if (done()) return true;
      roll_call_.call();
      if (is_asked && roll_call_.has_had_time()) give_up_on_all(what);
      return false;
    };
    wait(
        is_done, kRankZeroGrace, [&] { give_up_on_all(what); }, [&] { is_asked = true; });
  }
  roll_call_.end();
}

void Waits::give_up_on_all(const std::string& what) {
  const auto silent = roll_call_.silent();
  failures_.give_up_on(silent);
  failures_.announce_and_fail(
      silent.empty()
          ? world_.late(roll_call_.waiting(),
                        fmt::format("completed '{}', though all ranks answer,", what))
          : world_.late(silent, fmt::format("answered in '{}', to which all ranks came,", what)));
}

}  // namespace awex
