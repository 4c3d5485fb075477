#pragma once

#include <cstdint>
#include <string>

#include "cycle/report.hpp"
#include "memory/region.hpp"

namespace awex {

/// A phase as one rank sees it.
struct PhaseEvent {
  std::string phase;  ///< As in PhaseReport.
  std::string role;   ///< "trainer", "inference" or "all".
  std::string tag;    ///< Empty when it is about no memory.
  uint64_t version = 0;
  bool takes_part = false;   ///< Whether this rank works in the phase.
  Region* region = nullptr;  ///< This rank's memory that the phase works on, if any.
};

/// Told of every phase on every rank, in the rank's own thread: progress for people, and the place
/// where tests disturb memory or processes. What a call throws fails the phase.
class CycleObserver {
 public:
  CycleObserver() = default;
  CycleObserver(const CycleObserver&) = delete;
  CycleObserver& operator=(const CycleObserver&) = delete;
  CycleObserver(CycleObserver&&) = delete;
  CycleObserver& operator=(CycleObserver&&) = delete;
  virtual ~CycleObserver() = default;

  /// Before this rank begins the phase.
  virtual void phase_started(const PhaseEvent& event) = 0;
  /// After all ranks have finished it; `seconds` and `bytes` are over all ranks.
  virtual void phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) = 0;
  /// Once the run is settled, before memory is taken.
  virtual void run_started(const Report& /*report*/) {}
  /// While all ranks load, from time to time: bytes of bytes that this rank knows of.
  virtual void loading(uint64_t /*done_bytes*/, uint64_t /*all_bytes*/) {}
  /// When all ranks have loaded.
  virtual void loaded() {}
  /// After each version. On rank 0 the report is complete up to here.
  virtual void version_finished(const Report& /*report*/) {}
};

}  // namespace awex
