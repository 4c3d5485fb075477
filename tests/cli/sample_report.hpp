#pragma once

#include <string>
#include <utility>

#include "cycle/report.hpp"

namespace awex::test {

inline PhaseReport sample_phase(std::string phase, std::string role, std::string tag,
                                double start_s, double seconds, uint64_t bytes = 0) {
  PhaseReport report;
  report.phase = std::move(phase);
  report.role = std::move(role);
  report.tag = std::move(tag);
  report.start_s = start_s;
  report.seconds = seconds;
  report.bytes = bytes;
  return report;
}

/// A committed version of 2 s with phases of every kind of completeness.
inline VersionReport sample_version(uint64_t number) {
  VersionReport version;
  version.version = number;
  version.committed = true;
  version.seconds = 2.0;
  version.phases = {sample_phase("offload", "trainer", "optimizer", 0.0, 1.0, 50'000'000'000),
                    sample_phase("resume", "inference", "weights", 0.5, 0.0),
                    sample_phase("transfer", "all", "weights", 1.0, 0.5, 8'000'000'000),
                    sample_phase("commit", "all", "", 1.5, 0.5)};
  version.phases[0].limit_bytes_per_s = 62.5e9;
  version.phases[0].ranks = {{0, 0.0, 1.0, 50'000'000'000}};
  version.phases[2].ranks = {{0, 1.0, 0.5, 0}, {1, 1.25, 0.25, 8'000'000'000}};
  version.phases[3].ranks = {{0, 1.5, 0.5, 0}, {1, 1.5, 0.5, 0}};
  version.digest = DigestReport{398, 0, 0x0123456789abcdefU, {}};
  return version;
}

/// What a good run of one version on one GPU reports.
inline Report sample_report() {
  Report report;
  report.command = "update";
  report.started_at = "2026-05-04T03:02:01Z";
  report.backend = "cuda";
  report.model_name = "qwen3-4b";
  report.model_tensors = 398;
  report.model_bytes = 8044936192;
  report.trainer = "megatron:tp=1";
  report.inference = "sglang:tp=1";
  report.ranks = 2;
  report.gpus = 1;
  report.nodes = 1;
  report.rank_infos = {{0, "trainer", "alpha", "0 NVIDIA H100"},
                       {1, "inference", "alpha", "0 NVIDIA H100"}};
  report.plan = PlanReport{0.002, 398, 8044936192, 7, 5};
  report.versions = {sample_version(1)};
  report.memory.device_peak_bytes = 64'000'000'000;
  report.memory.host_pinned_bytes = 48'000'000'000;
  report.memory.leaked_bytes = 0;
  report.memory.by_role_and_tag = {{"trainer", "weights", 8'000'000'000, 0},
                                   {"trainer", "optimizer", 48'000'000'000, 48'000'000'000}};
  report.committed_version = 1;
  report.finished = true;
  return report;
}

/// An error with every part of its context known.
inline Error sample_error() {
  Error error(ExitCode::kMismatch, "tensor \"a\" differs", "look at its shard");
  error.context() = {1, "alpha", "0", "inference", "verify", "weights", "a"};
  return error;
}

}  // namespace awex::test
