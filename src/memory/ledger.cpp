#include "memory/ledger.hpp"

#include "base/units.hpp"

namespace awex {

void MemoryLedger::reserve(uint64_t bytes, const std::string& what, const Deadline& deadline,
                           WaitMonitor& monitor) {
  if (try_reserve(bytes)) return;
  const auto wait = [&] {
    return fmt::format(
        "the wait for room for {} of {} within the GPU's budget of {}, of which {} are held,",
        format_bytes(bytes), what, format_bytes(budget_bytes_), format_bytes(words_.held.load()));
  };
  wait_until(
      [&] { return try_reserve(bytes); }, wait, deadline, monitor,
      "nothing that this command moves makes that room: awex-colocate status --job DIR tells "
      "who holds what; a whole resume (take_back) gives inference's back, a larger "
      "--gpu-memory more");
}

void MemoryLedger::release(uint64_t bytes) noexcept { words_.held -= bytes; }

bool MemoryLedger::try_reserve(uint64_t bytes) {
  uint64_t held = words_.held.load();
  do {
    if (bytes > budget_bytes_ || held > budget_bytes_ - bytes) return false;
  } while (!words_.held.compare_exchange_weak(held, held + bytes));
  uint64_t peak = words_.peak.load();
  while (peak < held + bytes && !words_.peak.compare_exchange_weak(peak, held + bytes)) {
  }
  return true;
}

}  // namespace awex
