#include "cli/progress.hpp"

#include <fmt/format.h>
#include <string>

#include "base/log.hpp"
#include "base/units.hpp"

namespace awex {

std::string loading_text(uint64_t done_bytes, uint64_t all_bytes) {
  return fmt::format("loading the weights: {} of {}", format_bytes(done_bytes),
                     format_bytes(all_bytes));
}

log::Fact phase_fact(const PhaseEvent& event, double seconds, uint64_t bytes) {
  return {"phase",
          {{"version", event.version},
           {"phase", event.phase},
           {"role", event.role},
           {"tag", text_or_null(event.tag)},
           {"seconds", seconds},
           {"bytes", bytes}}};
}

void LoadingLines::tell(uint64_t done_bytes, uint64_t all_bytes) {
  if (all_bytes == 0) return;  // engines that attach load for themselves
  const bool is_json = log::format() == log::Format::kJson;
  const double every_s = is_json ? 1 : 10;
  const double begin_s = is_json ? -every_s : 0;  // people are told of what takes long
  if (watch_.seconds() < last_line_s_.value_or(begin_s) + every_s) return;
  log::note(loading_text(done_bytes, all_bytes),
            {"loading", {{"done_bytes", done_bytes}, {"all_bytes", all_bytes}}});
  last_line_s_ = watch_.seconds();
}

namespace {

log::Fact run_fact(const Report& report) {
  return {"started",
          {{"command", report.command},
           {"model", report.model_name},
           {"trainer", report.trainer},
           {"inference", report.inference},
           {"ranks", report.ranks},
           {"backend", report.backend}}};
}

log::Fact version_fact(const VersionReport& version) {
  return {"version",
          {{"version", version.version},
           {"committed", version.committed},
           {"seconds", value_or_null(version.seconds)},
           {"model_digest",
            version.digest ? Json(fmt::format("{:#018x}", version.digest->model)) : Json()}}};
}

}  // namespace

TerminalProgress::TerminalProgress(bool speaks, uint64_t versions, ReportFiles& files)
    : speaks_(speaks), line_(speaks), versions_(versions), files_(files) {}

void TerminalProgress::phase_started(const PhaseEvent& event) {
  if (!line_.moves()) return;
  line_.draw(fmt::format("version {} of {}: {} ...", event.version, versions_,
                         phase_subject(event.phase, event.role, event.tag)));
}

void TerminalProgress::phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) {
  if (!speaks_) return;
  log::detail(
      fmt::format("version {}: {}: {}", event.version,
                  phase_subject(event.phase, event.role, event.tag), phase_outcome(seconds, bytes)),
      phase_fact(event, seconds, bytes));
}

void TerminalProgress::run_started(const Report& report) {
  if (!speaks_ || line_.moves()) return;
  log::note(fmt::format("{}: {}, {} -> {}, {} ranks, {}", report.command, report.model_name,
                        report.trainer, report.inference, report.ranks, report.backend),
            run_fact(report));
}

void TerminalProgress::loading(uint64_t done_bytes, uint64_t all_bytes) {
  loaded_bytes_ = done_bytes;
  all_bytes_ = all_bytes;
  if (line_.moves()) {
    line_.draw(loading_text(done_bytes, all_bytes));
  } else if (speaks_) {
    loading_.tell(done_bytes, all_bytes);
  }
}

void TerminalProgress::loaded() {
  if (!speaks_ || line_.moves()) return;
  log::note(fmt::format("loaded the weights: {} of {} in {}", format_bytes(loaded_bytes_),
                        format_bytes(all_bytes_), format_seconds(loading_.seconds())),
            {"loaded",
             {{"done_bytes", loaded_bytes_},
              {"all_bytes", all_bytes_},
              {"seconds", loading_.seconds()}}});
}

void TerminalProgress::version_finished(const Report& report) {
  if (!speaks_) return;
  try {
    files_.update(report);
  } catch (const Error& error) {
    log::warning(error.what());  // the end of the job tries again, and fails then
  }
  const auto& version = report.versions.back();
  if (line_.moves()) return;
  log::note(fmt::format("version {} of {}: {} in {}", version.version, versions_,
                        version.committed ? "committed" : "done",
                        format_seconds(version.seconds.value_or(0))),
            version_fact(version));
}

}  // namespace awex
