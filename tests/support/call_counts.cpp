#include "support/call_counts.hpp"

#include <mutex>

namespace awex::test {
namespace {

std::mutex g_mutex;

CallCounts& counts() {
  static CallCounts all;
  return all;
}

}  // namespace

void note_call(const char* function) {
  const std::lock_guard lock(g_mutex);
  ++counts()[function];
}

CallCounts calls_so_far() {
  const std::lock_guard lock(g_mutex);
  return counts();
}

CallCounts calls_between(const CallCounts& before, const CallCounts& after) {
  CallCounts calls;
  for (const auto& [function, count] : after) {
    const auto earlier = before.find(function);
    const uint64_t new_calls = count - (earlier == before.end() ? 0 : earlier->second);
    if (new_calls > 0) calls[function] = new_calls;
  }
  return calls;
}

CallCounts sum_of(CallCounts a, const CallCounts& b) {
  for (const auto& [function, count] : b) a[function] += count;
  return a;
}

CallCounts times(uint64_t times, CallCounts calls) {
  if (times == 0) return {};
  for (auto& [function, count] : calls) count *= times;
  return calls;
}

}  // namespace awex::test
