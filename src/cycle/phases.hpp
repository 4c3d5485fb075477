#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
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

/// A phase, and what this rank does in it if it takes part. `work` returns the bytes it moved or
/// read; `region` is what it works on, for observers.
struct Step {
  Phase phase;
  Region* region = nullptr;
  std::function<uint64_t()> work;
  std::function<void()> begins{};  ///< On every rank, before any of the phases beside it begins.
  std::function<void()> ended{};   ///< On every rank, when all ranks have finished them.
  /// Engines take memory, or give it, that is in no book: nobody knows what a device lacks then.
  bool is_of_engines = false;
};

/// Runs phases as collective steps that end in agreement: every rank finishes or all learn why not.
/// After each agreement it compares the devices' memory with the books and adds to the report.
class PhaseRunner {
 public:
  /// `sample` reads this rank's memory at a quiet moment. All references must outlive the runner;
  /// `report` gains phases in its last version.
  PhaseRunner(Job& job, CycleObserver& observer, MemoryAccount& account,
              std::function<MemorySample()> sample, Report& report);

  /// Sets the memory account's baseline. Collective.
  void take_baseline();

  /// Runs phases side by side: each rank does those in which it takes part, in the order given,
  /// while ranks of the other role do theirs, and returns when all ranks have done all. Throws the
  /// first cause of a failure on every rank, agreed where `work` threw Error(kMismatch) or memory
  /// leaked (an error of that GPU, not of a rank). Steps that other ranks wait for
  /// come before those that may find a mismatch: what follows a mismatch is not done. At most
  /// kMostSteps.
  void run(std::span<const Step> steps);
  void run(Step step) { run(std::span(&step, 1)); }

  static constexpr size_t kMostSteps = 8;

 private:
  struct Sample;
  [[nodiscard]] PhaseEvent event_of(const Step& step) const;
  [[nodiscard]] Sample perform(std::span<const Step> steps);
  void record(const Step& step, size_t index, const std::vector<Sample>& samples);
  void check_leaks(const std::vector<MemorySample>& samples);

  Job& job_;
  CycleObserver& observer_;
  MemoryAccount& account_;
  std::function<MemorySample()> sample_;
  Report& report_;
};

}  // namespace awex
