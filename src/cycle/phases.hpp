#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "comm/job.hpp"
#include "cycle/accounting.hpp"
#include "cycle/observer.hpp"
#include "cycle/report.hpp"
#include "memory/region.hpp"

namespace awex {

/// Which of the links bounds a phase.
enum class Link : uint8_t { kNone, kDeviceToHost, kHostToDevice, kDeviceToDevice };

struct Phase {
  const char* name = "";
  std::optional<Role> role;  ///< Absent: all ranks work.
  std::optional<Tag> tag;
  Link link = Link::kNone;
};

/// Runs phases as collective steps that end in agreement: every rank finishes or all learn why not.
/// After each phase it compares the devices' memory with the books and adds to the report.
class PhaseRunner {
 public:
  /// `sample` reads this rank's memory at a quiet moment. All references must outlive the runner;
  /// `report` gains phases in its last version.
  PhaseRunner(Job& job, CycleObserver& observer, MemoryAccount& account,
              std::function<MemorySample()> sample, Report& report);

  /// Sets the memory account's baseline. Collective.
  void take_baseline();

  /// Lets this rank work, if it takes part, and returns when all ranks have. `work` returns the
  /// bytes it moved or read; `region` is what it works on, for observers. Throws the first cause of
  /// a failure on every rank, agreed where `work` threw Error(kMismatch) or memory leaked.
  void run(const Phase& phase, Region* region, const std::function<uint64_t()>& work);

 private:
  struct Sample;
  [[nodiscard]] uint64_t perform(const PhaseEvent& event, const std::function<uint64_t()>& work);
  void record(const Phase& phase, const PhaseEvent& event, const std::vector<Sample>& samples);
  void check_leaks(const std::vector<MemorySample>& samples);

  Job& job_;
  CycleObserver& observer_;
  MemoryAccount& account_;
  std::function<MemorySample()> sample_;
  Report& report_;
};

}  // namespace awex
