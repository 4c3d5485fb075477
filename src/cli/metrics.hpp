#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "cli/output_files.hpp"
#include "cycle/observer.hpp"
#include "cycle/report.hpp"
#include "serve/job_status.hpp"

namespace awex {

/// What a job has done since it began and what it holds now, for Prometheus. Counters only grow.
struct MetricValues {
  struct Work {
    double seconds = 0;
    uint64_t bytes = 0;
    uint64_t times = 0;
  };
  struct Memory {
    uint64_t device_bytes = 0;
    uint64_t host_bytes = 0;
  };
  using PhaseKey = std::tuple<std::string, std::string, std::string>;  ///< Phase, role, tag.
  using MemoryKey = std::pair<std::string, std::string>;               ///< Role, tag.

  bool up = true;
  double start_time_s = 0;  ///< Of the process, in seconds since 1970 (UTC), as all times here.
  Report job;               ///< Of which model, layouts, backend, world and memory count.
  std::map<PhaseKey, Work> phases;
  std::map<std::string, uint64_t> commands;  ///< That ended well or not, by name.
  std::map<int, uint64_t> failures;          ///< By exit code.
  uint64_t versions_committed = 0;
  std::optional<double> commit_time_s;  ///< When the last was committed, as far as this job knows.
  std::optional<double> version_seconds;        ///< How long the last one took.
  std::map<MemoryKey, Memory> memory;           ///< Held now; empty where nobody was asked.
  std::optional<JobStatus::Activity> activity;  ///< Of a resident job.
  uint64_t queued = 0;
};

/// In the text format of Prometheus (version 0.0.4).
[[nodiscard]] std::string render_metrics(const MetricValues& values);

/// Throws a request error for a path that cannot be a textfile.
void check_metrics_path(const std::string& path);

/// Counts on every rank what a job does, and keeps the file of --metrics true on the rank that
/// writes it. The file is replaced as a whole. What cannot be written is told once, as a warning:
/// no job fails for its metrics.
class Metrics {
 public:
  /// `path` may be empty: nothing is written. `writes`: whether this rank does.
  Metrics(const std::string& path, bool writes);

  /// The file is there from now on. Throws a request error where it cannot be.
  void open(const Report& begun);
  /// The run is settled.
  void run_started(const Report& report);
  void phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes);
  /// After a version of `report`.
  void version_finished(const Report& report);
  /// After a command, or a failure between commands; what follows writes it.
  void command_finished(const Report& report, const std::optional<Error>& error, bool ran);
  /// What a resident job holds and does.
  void status_changed(const JobStatus& status);
  /// The job ends, for an error that no command has told of. `writes`: whether this rank writes
  /// it, also where another did before.
  void job_ended(const std::optional<Error>& error, bool writes);

 private:
  void write();

  std::string path_;
  bool writes_;
  bool is_open_ = false;
  OutputFiles files_;
  MetricValues values_;
};

/// Tells the metrics, and then another observer, of a cycle.
class MeteredObserver final : public CycleObserver {
 public:
  /// Both must outlive it.
  MeteredObserver(CycleObserver& observer, Metrics& metrics)
      : observer_(observer), metrics_(metrics) {}

  void phase_started(const PhaseEvent& event) override { observer_.phase_started(event); }
  void phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) override {
    metrics_.phase_finished(event, seconds, bytes);
    observer_.phase_finished(event, seconds, bytes);
  }
  void run_started(const Report& report) override {
    metrics_.run_started(report);
    observer_.run_started(report);
  }
  void loading(uint64_t done_bytes, uint64_t all_bytes) override {
    observer_.loading(done_bytes, all_bytes);
  }
  void loaded() override { observer_.loaded(); }
  void version_finished(const Report& report) override {
    metrics_.version_finished(report);
    observer_.version_finished(report);
  }

 private:
  CycleObserver& observer_;
  Metrics& metrics_;
};

}  // namespace awex
