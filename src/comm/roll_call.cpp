#include "comm/roll_call.hpp"

#include <algorithm>
#include <tuple>

#include "base/wait.hpp"

namespace awex {
namespace {

/// What MPI does when all have come takes less.
constexpr Seconds kFirstCall{0.05};
constexpr double kCallsPerTimeout = 10;
constexpr Seconds kShortestInterval{0.5};
/// Together with the first call less than what a rank that has asked rank 0 waits for its answer.
constexpr Seconds kAnswerTime{0.25};

}  // namespace

void RollCall::begin(const std::string& what) {
  waits_ = fixed_text<std::tuple_size_v<decltype(waits_)>>(what);
  before_ = number_;
  next_ = Clock::now() + as_duration(kFirstCall);
}

void RollCall::call() {
  const auto time = Clock::now();
  if (time < next_) return;
  last_ = time;
  next_ = time + as_duration(std::max(kShortestInterval, world_.timeout() / kCallsPerTimeout));
  const WireRollCall wire{++number_, {}};
  for (int other = 1; other < world_.size(); ++other) {
    outbox_.send(bytes_of(wire), other, kRollCallTag, world_.control());
  }
}

void RollCall::exchange() {
  outbox_.push();
  take_letters<
      WireRollCall>(kRollCallTag, world_.control(), [this](const WireRollCall& wire, int from) {
    if (world_.rank() == 0) {
      answers_[from] = wire;
    } else {
      outbox_.send(bytes_of(WireRollCall{wire.number, waits_}), 0, kRollCallTag, world_.control());
    }
  });
}

/// The last call for which there has been the time.
uint64_t RollCall::due() const {
  return Clock::now() - last_ < kAnswerTime ? number_ - 1 : number_;
}

bool RollCall::has_had_time() const { return due() > before_; }

std::vector<int> RollCall::silent() const {
  std::vector<int> ranks;
  if (!has_had_time()) return ranks;
  for (int other = 1; other < world_.size(); ++other) {
    const auto answer = answers_.find(other);
    if (answer == answers_.end() || answer->second.number < due()) ranks.push_back(other);
  }
  return ranks;
}

std::vector<int> RollCall::waiting() const {
  std::vector<int> ranks{0};
  for (const auto& [other, answer] : answers_) {
    if (answer.number > before_ && answer.waits == waits_) ranks.push_back(other);
  }
  return ranks;
}

}  // namespace awex
