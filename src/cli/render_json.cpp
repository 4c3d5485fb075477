#include "cli/render_json.hpp"

#include <fmt/format.h>

#include "base/error_json.hpp"
#include "base/json_values.hpp"
#include "serve/memory_json.hpp"

namespace awex {
namespace {

Json count_or_null(int count) { return count > 0 ? Json(count) : Json(); }

Json model_json(const Report& report) {
  if (report.model_name.empty()) return {};
  return {{"name", report.model_name},
          {"tensors", report.model_tensors},
          {"bytes", report.model_bytes}};
}

Json plan_json(const std::optional<PlanReport>& plan) {
  if (!plan) return {};
  return {{"seconds", plan->seconds},
          {"pieces", plan->pieces},
          {"local_bytes", plan->local_bytes},
          {"remote_bytes", plan->remote_bytes},
          {"remote_bytes_lower_bound", plan->remote_bytes_lower_bound}};
}

Json phase_json(const PhaseReport& phase) {
  return {{"phase", phase.phase},
          {"role", phase.role},
          {"tag", text_or_null(phase.tag)},
          {"start_s", phase.start_s},
          {"seconds", phase.seconds},
          {"bytes", phase.bytes},
          {"bytes_per_s", value_or_null(phase.bytes_per_s())},
          {"limit_bytes_per_s", value_or_null(phase.limit_bytes_per_s)},
          {"ratio", value_or_null(phase.ratio())}};
}

Json digest_json(const std::optional<DigestReport>& digest) {
  if (!digest) return {};
  return {{"tensors", digest->tensors},
          {"mismatched", digest->mismatched},
          {"model", fmt::format("{:#018x}", digest->model)}};
}

Json version_json(const VersionReport& version) {
  Json phases = Json::array();
  for (const auto& phase : version.phases) phases.push_back(phase_json(phase));
  return {{"version", version.version},
          {"committed", version.committed},
          {"seconds", value_or_null(version.seconds)},
          {"phases", phases},
          {"digest", digest_json(version.digest)}};
}

Json outcome_json(const Report& report) {
  if (report.error) return error_json(*report.error);
  if (report.finished) return {};
  return error_json(runtime_error("the job has not finished",
                                  "it is still running, or its rank 0 was killed before it could "
                                  "write its report"));
}

}  // namespace

std::string render_json(const Report& report) {
  Json versions = Json::array();
  for (const auto& version : report.versions) versions.push_back(version_json(version));
  Json json = {{"schema_version", 1},
               {"command", report.command},
               {"ok", report.exit_code() == ExitCode::kOk},
               {"exit_code", static_cast<int>(report.exit_code())},
               {"backend", text_or_null(report.backend)},
               {"started_at", text_or_null(report.started_at)},
               {"model", model_json(report)},
               {"trainer", text_or_null(report.trainer)},
               {"inference", text_or_null(report.inference)},
               {"notes", report.notes},
               {"world",
                {{"ranks", count_or_null(report.ranks)},
                 {"gpus", count_or_null(report.gpus)},
                 {"nodes", count_or_null(report.nodes)},
                 {"one_core_ranks", report.one_core_ranks}}},
               {"plan", plan_json(report.plan)},
               {"versions", versions},
               {"committed_version", value_or_null(report.committed_version)},
               {"poisoned", report.poisoned},
               {"memory", memory_json(report.memory)},
               {"error", outcome_json(report)}};
  if (!report.admission.empty()) json["admission"] = report.admission;
  // Paths and host names may hold bytes that are no UTF-8; the report is written all the same.
  return indented_text(json);
}

}  // namespace awex
