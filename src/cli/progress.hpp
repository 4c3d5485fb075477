#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/log_fact.hpp"
#include "base/wait.hpp"
#include "cli/moving_line.hpp"
#include "cli/report_files.hpp"
#include "cycle/observer.hpp"
#include "cycle/options.hpp"

namespace awex {

/// "loading the weights: 1.2 GB of 8.04 GB".
[[nodiscard]] std::string loading_text(uint64_t done_bytes, uint64_t all_bytes);

/// Facts of a phase's end, for programs.
[[nodiscard]] log::Fact phase_fact(const PhaseEvent& event, double seconds, uint64_t bytes);

/// Tells in a log, every 10 s, how far loading has come; programs every second.
class LoadingLines {
 public:
  void tell(uint64_t done_bytes, uint64_t all_bytes);
  /// Since it was made.
  [[nodiscard]] double seconds() const { return watch_.seconds(); }

 private:
  Stopwatch watch_;
  std::optional<double> last_line_s_;
};

/// Tells rank 0's user on stderr what the job does: one moving line on a terminal; in a log a
/// header, a line for loading and one for each version; a line for each phase when verbose. Silent
/// on other ranks.
class TerminalProgress final : public CycleObserver {
 public:
  /// `files` are brought up to date after every version; they must outlive it.
  TerminalProgress(bool speaks, uint64_t versions, ReportFiles& files);
  TerminalProgress(const TerminalProgress&) = delete;
  TerminalProgress& operator=(const TerminalProgress&) = delete;
  TerminalProgress(TerminalProgress&&) = delete;
  TerminalProgress& operator=(TerminalProgress&&) = delete;
  ~TerminalProgress() override = default;

  void phase_started(const PhaseEvent& event) override;
  void phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) override;
  void run_started(const Report& report) override;
  void loading(uint64_t done_bytes, uint64_t all_bytes) override;
  void loaded() override;
  void version_finished(const Report& report) override;

 private:
  bool speaks_;
  MovingLine line_;
  uint64_t versions_;
  ReportFiles& files_;
  LoadingLines loading_;
  uint64_t loaded_bytes_ = 0;
  uint64_t all_bytes_ = 0;
};

}  // namespace awex
