#pragma once

#include <optional>
#include <string>
#include <vector>

#include "comm/job.hpp"
#include "doctor/finding.hpp"
#include "memory/device.hpp"

namespace awex {

/// What a user asks of the doctor; the same on every rank but for `role`.
struct DoctorOptions {
  std::optional<BackendKind> backend;  ///< Absent: cuda where there is a GPU, host otherwise.
  std::optional<Role> role;            ///< This rank's; by position in the node when absent.
  bool share_gpu = false;
  Seconds timeout{60};  ///< Of every single wait; a check has less.
};

/// What was found on one rank.
struct RankExamination {
  int rank = 0;
  std::string host;
  int pid = 0;
  std::optional<Role> role;
  std::optional<int> partner;  ///< Of the other role on its GPU.
  std::optional<DeviceIdentity> gpu;
  Findings findings;
};

struct DoctorReport {
  std::string started_at;              ///< ISO 8601, UTC.
  std::optional<BackendKind> backend;  ///< That an update would take; absent: unknown.
  int nodes = 0;
  int gpus = 0;                        ///< That ranks are paired on; 0: unknown.
  std::vector<RankExamination> ranks;  ///< By rank; empty where the job failed.
  std::optional<Error> error;          ///< That ended the examination.
  bool finished = false;

  /// 0 when an update can run, 1 when a check has failed, else the error's.
  [[nodiscard]] ExitCode exit_code() const;
};

[[nodiscard]] DoctorReport begin_doctor_report();

/// Looks at everything that an update needs, on all ranks. Changes nothing that remains. Throws
/// only what ends the job. Collective; the same report on every rank.
[[nodiscard]] DoctorReport examine(Job& job, const DoctorOptions& options);

/// The same of this process alone, which cannot be part of a job: `why` is the launcher's finding.
[[nodiscard]] DoctorReport examine_without_job(const DoctorOptions& options, const Error& why);

}  // namespace awex
