#pragma once

#include <cstdint>

#include "cycle/observer.hpp"
#include "cycle/run_options.hpp"

namespace awex {

/// Tells rank 0's user on stderr what the job does: one moving line on a terminal, a plain line for
/// each finished phase when verbose, nothing otherwise. Silent on other ranks.
class Progress final : public CycleObserver {
 public:
  Progress(bool speaks, uint64_t versions);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  Progress(Progress&&) = delete;
  Progress& operator=(Progress&&) = delete;
  ~Progress() override { clear(); }

  void phase_started(const PhaseEvent& event) override;
  void phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) override;
  /// Takes the moving line away, before anything else is written.
  void clear();

 private:
  bool speaks_;
  bool moves_;
  bool drawn_ = false;
  uint64_t versions_;
};

}  // namespace awex
