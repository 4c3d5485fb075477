#include "comm/waits.hpp"

#include "comm/signals.hpp"

namespace awex {
namespace {

constexpr MpiWorld::Clock::duration kListenInterval = std::chrono::microseconds(20);
constexpr MpiWorld::Clock::duration kLookInterval = std::chrono::milliseconds(5);

}  // namespace

void Waits::poll() {
  failures_.throw_known();
  const int signal_number = termination_signal();
  const auto time = Clock::now();
  if (signal_number == 0 && time < next_listen_) return;
  next_listen_ = time + kListenInterval;
  failures_.listen();
  failures_.throw_known();
  failures_.answer_question();
  progress_.exchange();
  progress_.look_for_silent();
  if (signal_number != 0 || time >= next_look_) {
    next_look_ = time + kLookInterval;
    failures_.look_for_lost();
  }
  if (signal_number != 0) failures_.look_for_signal(signal_number);
}

void Waits::wait_for_others(Requests& requests, const std::string& deed,
                            std::span<const WireError> verdicts) {
  const auto give_up = [&] {
    const auto* cause = first_cause(verdicts);
    const auto missing = requests.missing();
    failures_.give_up_on(missing);
    failures_.announce_and_fail(cause != nullptr ? from_wire(*cause) : world_.late(missing, deed));
  };
  const auto done = [&] {
    if (requests.test()) return true;
    failures_.listen();
    if (failures_.take_question()) give_up();
    return false;
  };
  wait(done, kRankZeroGrace, give_up);
}

}  // namespace awex
