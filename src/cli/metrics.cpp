#include "cli/metrics.hpp"

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "base/build_identity.hpp"
#include "base/json_values.hpp"
#include "base/log.hpp"

namespace awex {
namespace {

using Labels = std::vector<std::pair<const char*, std::string>>;

double seconds_since_1970() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

/// A label's value as the format has it: backslash, quote and newline with a backslash. Other
/// control characters, and what is no UTF-8, would make the file unreadable.
std::string escaped(const std::string& value) {
  // A JSON text has the same escapes, and is always UTF-8.
  const auto text = compact_text(Json(value));
  std::string out;
  for (size_t i = 1; i + 1 < text.size(); ++i) {
    const bool is_escape = text[i] == '\\';
    const char next = is_escape ? text[i + 1] : '\0';
    if (is_escape && next != '\\' && next != '"' && next != 'n') {
      out += '?';  // of a control character
      i += next == 'u' ? 5 : 1;
      continue;
    }
    out += text[i];
    if (is_escape) out += text[++i];
  }
  return out;
}

/// The text of metrics, one after the other.
class Exposition {
 public:
  void begin(const char* name, const char* type, const char* help) {
    name_ = name;
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  template <class Number>
  void add(const Labels& labels, Number value) {
    std::vector<std::string> parts;
    for (const auto& [label, text] : labels) {
      parts.push_back(fmt::format("{}=\"{}\"", label, escaped(text)));
    }
    text_ += fmt::format("{}{} {}\n", name_,
                         parts.empty() ? "" : fmt::format("{{{}}}", fmt::join(parts, ",")), value);
  }
  template <class Number>
  void one(const char* name, const char* type, const char* help, Number value) {
    begin(name, type, help);
    add({}, value);
  }
  template <class Number>
  void one(const char* name, const char* type, const char* help,
           const std::optional<Number>& value) {
    if (value) one(name, type, help, *value);
  }
  [[nodiscard]] std::string text() && { return std::move(text_); }

 private:
  const char* name_ = "";
  std::string text_;
};

void add_job(Exposition& out, const MetricValues& values) {
  const Report& job = values.job;
  out.one("awex_up", "gauge", "1 while the job runs, 0 when it has ended.", values.up ? 1 : 0);
  out.begin("awex_build_info", "gauge", "The program's build.");
  out.add({{"version", build_identity()}}, 1);
  out.begin("awex_job_info", "gauge", "What the job was started with.");
  out.add({{"model", job.model_name},
           {"trainer", job.trainer},
           {"inference", job.inference},
           {"backend", job.backend}},
          1);
  out.one("awex_start_time_seconds", "gauge", "When the job began, since 1970 UTC.",
          fmt::format("{:.3f}", values.start_time_s));
  out.one("awex_ranks", "gauge", "Ranks of the job.", job.ranks);
  out.one("awex_gpus", "gauge", "GPUs of the job.", job.gpus);
  out.one("awex_nodes", "gauge", "Nodes of the job.", job.nodes);
}

void add_versions(Exposition& out, const MetricValues& values) {
  out.one("awex_versions_committed_total", "counter", "Versions that every rank has verified.",
          values.versions_committed);
  out.one("awex_committed_version", "gauge", "The last version that was committed.",
          values.job.committed_version);
  if (values.commit_time_s) {
    out.one("awex_committed_version_timestamp_seconds", "gauge",
            "When the last version was committed, since 1970 UTC.",
            fmt::format("{:.3f}", *values.commit_time_s));
  }
  out.one("awex_last_version_duration_seconds", "gauge", "How long the last version took.",
          values.version_seconds);
  out.one("awex_content_poisoned", "gauge",
          "1 where inference weights may be mixed and must not be served.",
          values.job.poisoned ? 1 : 0);
}

void add_commands(Exposition& out, const MetricValues& values) {
  out.begin("awex_commands_total", "counter", "Commands that have ended, well or not.");
  for (const auto& [command, count] : values.commands) out.add({{"command", command}}, count);
  out.begin("awex_failures_total", "counter", "Commands, or the job, that have failed.");
  for (const auto& [code, count] : values.failures) {
    out.add({{"exit_code", std::to_string(code)}}, count);
  }
  if (!values.activity) return;
  out.begin("awex_activity", "gauge", "1 for what the resident job does now.");
  for (const auto activity :
       {JobStatus::Activity::kStarting, JobStatus::Activity::kIdle, JobStatus::Activity::kRunning,
        JobStatus::Activity::kRecovering, JobStatus::Activity::kEnding}) {
    out.add({{"activity", activity_name(activity)}}, values.activity == activity ? 1 : 0);
  }
  out.one("awex_queued_commands", "gauge", "Commands that wait.", values.queued);
}

void add_phases(Exposition& out, const MetricValues& values) {
  const auto add = [&](const char* name, const char* help, auto value_of) {
    out.begin(name, "counter", help);
    for (const auto& [key, work] : values.phases) {
      const auto& [phase, role, tag] = key;
      out.add({{"phase", phase}, {"role", role}, {"tag", tag}}, value_of(work));
    }
  };
  add("awex_phase_seconds_total", "Time from a phase's first start to its last end.",
      [](const auto& work) { return work.seconds; });
  add("awex_phase_bytes_total", "Bytes that a phase has moved or read.",
      [](const auto& work) { return work.bytes; });
  add("awex_phase_runs_total", "How often a phase was done.",
      [](const auto& work) { return work.times; });
}

void add_memory(Exposition& out, const MetricValues& values) {
  const MemoryReport& memory = values.job.memory;
  if (!values.memory.empty()) {
    out.begin("awex_device_memory_bytes", "gauge", "GPU memory that is held now.");
    for (const auto& [key, held] : values.memory) {
      out.add({{"role", key.first}, {"tag", key.second}}, held.device_bytes);
    }
  }
  out.begin("awex_host_memory_bytes", "gauge", "Pinned host memory that is held now.");
  for (const auto& entry : memory.by_role_and_tag) {
    const auto now = values.memory.find({entry.role, entry.tag});
    out.add({{"role", entry.role}, {"tag", entry.tag}},
            now == values.memory.end() ? entry.host_pinned_bytes : now->second.host_bytes);
  }
  out.begin("awex_device_memory_peak_bytes", "gauge", "GPU memory at its peak.");
  for (const auto& entry : memory.by_role_and_tag) {
    out.add({{"role", entry.role}, {"tag", entry.tag}}, entry.device_peak_bytes);
  }
  out.one("awex_fullest_device_peak_bytes", "gauge",
          "Memory of the fullest GPU at its peak, both roles together.", memory.device_peak_bytes);
  out.one("awex_host_pool_bytes", "gauge", "Pinned host memory that the job keeps.",
          memory.host_pinned_bytes);
  out.one("awex_leaked_bytes", "gauge", "GPU memory gone beyond what the books say.",
          memory.leaked_bytes);
}

}  // namespace

std::string render_metrics(const MetricValues& values) {
  Exposition out;
  add_job(out, values);
  add_versions(out, values);
  add_commands(out, values);
  add_phases(out, values);
  add_memory(out, values);
  return std::move(out).text();
}

void check_metrics_path(const std::string& path) {
  if (path == "-") {
    throw request_error("--metrics: metrics cannot go to stdout",
                        "name a file in the folder of a textfile collector: --metrics awex.prom");
  }
}

namespace {

/// Others would be left empty: metrics take the place of the file before.
void check_is_plain(const std::string& path) {
  std::error_code failure;
  const auto status = std::filesystem::status(path, failure);
  if (!std::filesystem::exists(status) || std::filesystem::is_regular_file(status)) return;
  throw request_error(fmt::format("--metrics: \"{}\" is no plain file", path),
                      "name a file in the folder of a textfile collector: --metrics awex.prom");
}

}  // namespace

Metrics::Metrics(const std::string& path, bool writes) : path_(path), writes_(writes) {
  values_.start_time_s = seconds_since_1970();
  for (int code = 1; code <= static_cast<int>(ExitCode::kPeerLost); ++code) {
    values_.failures[code] = 0;
  }
}

void Metrics::open(const Report& begun) {
  values_.job = begun;
  if (path_.empty() || !writes_) return;
  is_open_ = true;
  check_is_plain(path_);
  files_.open(path_, "", {render_metrics(values_), ""});
}

void Metrics::run_started(const Report& report) {
  values_.job = report;
  write();
}

void Metrics::phase_finished(const PhaseEvent& event, double seconds, uint64_t bytes) {
  auto& work = values_.phases[{event.phase, event.role, event.tag}];
  work.seconds += seconds;
  work.bytes += bytes;
  ++work.times;
  if (event.phase != "commit") return;
  ++values_.versions_committed;
  values_.commit_time_s = seconds_since_1970();
}

void Metrics::version_finished(const Report& report) {
  values_.job = report;
  values_.version_seconds = report.versions.back().seconds;
  write();
}

void Metrics::command_finished(const Report& report, const std::optional<Error>& error, bool ran) {
  values_.job = report;
  if (ran) ++values_.commands[report.command];
  if (error) ++values_.failures[static_cast<int>(error->code())];
}

void Metrics::status_changed(const JobStatus& status) {
  values_.activity = status.activity;
  values_.queued = status.queued;
  values_.job.memory = status.memory;
  values_.job.committed_version = status.committed_version;
  values_.job.poisoned = status.content == ContentState::kPoisoned;
  values_.memory.clear();
  for (size_t rank = 0; rank < status.ranks.size() && rank < status.rank_infos.size(); ++rank) {
    for (size_t tag = 0; tag < kTags; ++tag) {
      const auto& held = status.ranks[rank].memory.at(tag);
      if (!held) continue;
      auto& sum = values_.memory[{status.rank_infos[rank].role, tag_name(static_cast<Tag>(tag))}];
      sum.device_bytes += held->device_bytes;
      sum.host_bytes += held->host_bytes;
    }
  }
  write();
}

void Metrics::job_ended(const std::optional<Error>& error, bool writes) {
  values_.up = false;
  if (values_.activity) values_.activity = JobStatus::Activity::kEnding;
  if (error) ++values_.failures[static_cast<int>(error->code())];
  writes_ = writes;
  write();
}

void Metrics::write() {
  if (path_.empty() || !writes_) return;
  try {
    const OutputTexts texts{render_metrics(values_), ""};
    if (!std::exchange(is_open_, true)) return files_.open(path_, "", texts);
    files_.update(texts);
  } catch (const Error& error) {
    log::warning(fmt::format("--metrics: {}", error.what()));
    path_.clear();
  }
}

}  // namespace awex
