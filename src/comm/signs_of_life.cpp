#include "comm/signs_of_life.hpp"

#include <chrono>

#include "comm/process_watch.hpp"

namespace awex {
namespace {

constexpr MpiWorld::Clock::duration kLookInterval = std::chrono::milliseconds(50);
// Tools that look at processes stop them for an instant.
constexpr MpiWorld::Clock::duration kLongestInstant = std::chrono::milliseconds(100);

}  // namespace

std::vector<int> SignsOfLife::lost_among(const std::vector<int>& missing) {
  std::vector<int> lost;
  const auto time = Clock::now();
  if (time < next_look_) return lost;
  next_look_ = time + kLookInterval;
  for (const int rank : missing) {
    if (is_lost(rank)) lost.push_back(rank);
  }
  return lost;
}

bool SignsOfLife::is_lost(int rank) {
  const auto time = Clock::now();
  auto& seen = seen_.try_emplace(rank, Seen{start_, {}, {}}).first->second;
  const auto activity = world_.activity_of(rank);
  if (!activity || !activity->is_stopped) {
    seen.stopped.reset();
  } else if (!seen.stopped) {
    seen.stopped = time;
  }
  if (seen.stopped && time - *seen.stopped >= kLongestInstant) return true;
  const bool has_run =
      activity && seen.processor_ticks && *seen.processor_ticks != activity->processor_ticks;
  if (activity) seen.processor_ticks = activity->processor_ticks;
  if (has_run || (activity && activity->is_busy) || progress_.is_working(rank)) seen.sign = time;
  return timeout_is_spent_ && time - seen.sign >= kSilence;
}

}  // namespace awex
