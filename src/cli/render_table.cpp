#include "cli/render_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/launch.hpp"
#include "base/units.hpp"
#include "cli/render_timeline.hpp"
#include "cli/text_table.hpp"
#include "cli/wrapped_text.hpp"

namespace awex {
namespace {

const std::string kUnknown = "-";

enum class Verdict { kGood, kBad };

std::string paint(const std::string& text, Verdict verdict, const TextStyle& style) {
  if (!style.color) return text;
  return fmt::format("\033[{}m{}\033[0m", verdict == Verdict::kGood ? "32" : "31", text);
}

std::string counted(int count, const char* one, const char* many) {
  return fmt::format("{} {}", count, count == 1 ? one : many);
}

/// The decimal unit that a column of bytes is written in, for its largest value.
struct ByteUnit {
  const char* name;
  double bytes;
};

ByteUnit byte_unit_for(uint64_t largest) {
  constexpr std::array<ByteUnit, 3> kUnits{{{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}}};
  for (const auto& unit : kUnits) {
    if (static_cast<double>(largest) >= unit.bytes) return unit;
  }
  return {"B", 1};
}

std::string in_unit(uint64_t bytes, const ByteUnit& unit) {
  if (unit.bytes <= 1) return fmt::format("{}", bytes);
  return fmt::format("{:.3f}", static_cast<double>(bytes) / unit.bytes);
}

std::string milliseconds(double seconds) { return fmt::format("{:.3f}", seconds * 1e3); }

std::string gigabytes_per_s(const std::optional<double>& rate) {
  return rate ? fmt::format("{:.2f}", *rate / 1e9) : kUnknown;
}

std::string plan_line(const PlanReport& plan) {
  return fmt::format(
      "{} pieces in {}; {} from the own GPU, {} from others (at least {} are needed)", plan.pieces,
      format_seconds(plan.seconds), format_bytes(plan.local_bytes), format_bytes(plan.remote_bytes),
      format_bytes(plan.remote_bytes_lower_bound));
}

std::string limits_line(const Limits& limits) {
  std::vector<std::string> parts;
  const auto add = [&](const char* link, const std::optional<double>& rate) {
    if (rate) parts.push_back(fmt::format("{} {}", link, gigabytes_per_s(rate)));
  };
  add("device to host", limits.device_to_host);
  add("host to device", limits.host_to_device);
  add("device to device", limits.device_to_device);
  return parts.empty() ? "" : fmt::format("{} GB/s, one device", fmt::join(parts, ", "));
}

/// The first few of the ranks that have one core, and what to do.
std::string binding_line(const std::vector<int>& ranks) {
  if (ranks.empty()) return {};
  constexpr size_t kMostNamed = 4;
  const auto shown = std::min(ranks.size(), kMostNamed);
  const auto more =
      ranks.size() > shown ? fmt::format(" and {} more", ranks.size() - shown) : std::string();
  return fmt::format(
      "{} {}{} bound to one core: copies to host memory have one thread; {} gives "
      "more",
      ranks.size() == 1 ? "rank" : "ranks",
      fmt::join(ranks.begin(), ranks.begin() + static_cast<ptrdiff_t>(shown), ", "), more,
      unbinding_options(this_launch()));
}

std::string metadata(const Report& report, size_t width) {
  std::string out;
  const auto line = [&](const char* key, const std::string& text) {
    const std::string margin = "#            ";
    if (!text.empty()) out += fmt::format("# {:<10} {}\n", key, fitted(text, width, margin));
  };
  line("command", fmt::format("{}{}, started {}", report.command,
                              report.offload ? "" : " without offloading", report.started_at));
  if (!report.model_name.empty()) {
    line("model", fmt::format("{}: {} tensors, {}", report.model_name, report.model_tensors,
                              format_bytes(report.model_bytes)));
  }
  line("trainer", report.trainer);
  line("inference", report.inference);
  if (!report.admission.empty()) line("admission", report.admission);
  for (const auto& note : report.notes) line("note", note);
  if (report.ranks > 0) {
    const auto gpus = report.gpus > 0 ? counted(report.gpus, "GPU", "GPUs") + ", " : "";
    line("world", fmt::format("{}, {}{}", counted(report.ranks, "rank", "ranks"), gpus,
                              counted(report.nodes, "node", "nodes")));
  }
  line("binding", binding_line(report.one_core_ranks));
  line("backend", report.backend);
  if (report.plan) line("plan", plan_line(*report.plan));
  line("limits", limits_line(report.limits));
  return out;
}

std::vector<const VersionReport*> versions_in_full(const Report& report) {
  std::vector<const VersionReport*> chosen;
  for (const auto& version : report.versions) chosen.push_back(&version);
  if (chosen.size() > kVersionsInFull) chosen = {chosen.front(), chosen.back()};
  return chosen;
}

std::string phases_table(const Report& report, size_t width) {
  const auto versions = versions_in_full(report);
  uint64_t largest = 0;
  for (const auto* version : versions) {
    for (const auto& phase : version->phases) largest = std::max(largest, phase.bytes);
  }
  if (std::all_of(versions.begin(), versions.end(),
                  [](const auto* version) { return version->phases.empty(); })) {
    return {};
  }
  const auto unit = byte_unit_for(largest);
  constexpr auto kLeft = TextColumn::Align::kLeft;
  constexpr auto kRight = TextColumn::Align::kRight;
  constexpr auto kLeaves = TextColumn::Fold::kLeaves;  // the timeline and the ratio tell of them
  TextTable table({{"version", "", kRight, TextColumn::Fold::kHeading},
                   {"phase", "", kLeft},
                   {"role", "", kLeft},
                   {"tag", "", kLeft},
                   {"start", "(ms)", kRight, kLeaves},
                   {"time", "(ms)"},
                   {"bytes", fmt::format("({})", unit.name)},
                   {"rate", "(GB/s)"},
                   {"limit", "(GB/s)", kRight, kLeaves},
                   {"ratio", ""}});
  for (const auto* version : versions) {
    for (const auto& phase : version->phases) {
      const auto ratio = phase.ratio();
      table.add_row({fmt::format("{}", version->version), phase.phase, phase.role,
                     phase.tag.empty() ? kUnknown : phase.tag, milliseconds(phase.start_s),
                     milliseconds(phase.seconds),
                     phase.bytes > 0 ? in_unit(phase.bytes, unit) : kUnknown,
                     gigabytes_per_s(phase.bytes_per_s()), gigabytes_per_s(phase.limit_bytes_per_s),
                     ratio ? fmt::format("{:.3f}", *ratio) : kUnknown});
    }
  }
  const size_t left_out = report.versions.size() - versions.size();
  const auto note = left_out > 0
                        ? "# " +
                              fitted(fmt::format("phases of {} versions between are left out here; "
                                                 "--json has them all",
                                                 left_out),
                                     width, "# ") +
                              "\n"
                        : "";
  return "\n" + table.text(width) + note;
}

std::string versions_table(const Report& report, size_t width) {
  if (report.versions.empty()) return {};
  TextTable table({{"version", ""},
                   {"time", "(ms)"},
                   {"tensors", "", TextColumn::Align::kRight, TextColumn::Fold::kLeaves},
                   {"wrong", ""},
                   {"model digest", "", TextColumn::Align::kLeft},
                   {"committed", "", TextColumn::Align::kLeft}});
  for (const auto& version : report.versions) {
    const auto& digest = version.digest;
    table.add_row({fmt::format("{}", version.version),
                   version.seconds ? milliseconds(*version.seconds) : kUnknown,
                   digest ? fmt::format("{}", digest->tensors) : kUnknown,
                   digest ? fmt::format("{}", digest->mismatched) : kUnknown,
                   digest ? fmt::format("{:#018x}", digest->model) : kUnknown,
                   version.committed ? "yes" : "no"});
  }
  return "\n" + table.text(width);
}

std::string timeline(const Report& report, const TextStyle& style) {
  if (report.versions.empty()) return {};
  const auto text = render_timeline(report.versions.back(), style.unicode, style.width);
  return text.empty() ? "" : "\n" + text;
}

std::string memory_table(const MemoryReport& memory, size_t width) {
  if (memory.by_role_and_tag.empty()) return {};
  uint64_t largest = 0;
  for (const auto& entry : memory.by_role_and_tag) {
    largest = std::max({largest, entry.device_peak_bytes, entry.host_pinned_bytes});
  }
  const auto unit = byte_unit_for(largest);
  const auto unit_text = fmt::format("({})", unit.name);
  TextTable table({{"role", "", TextColumn::Align::kLeft},
                   {"tag", "", TextColumn::Align::kLeft},
                   {"device peak", unit_text},
                   {"host pinned", unit_text}});
  for (const auto& entry : memory.by_role_and_tag) {
    table.add_row({entry.role, entry.tag, in_unit(entry.device_peak_bytes, unit),
                   in_unit(entry.host_pinned_bytes, unit)});
  }
  return "\n" + table.text(width);
}

std::string memory_line(const MemoryReport& memory) {
  const auto peak = memory.device_peak_bytes ? fmt::format("{} at the peak of the fullest device, ",
                                                           format_bytes(*memory.device_peak_bytes))
                                             : "";
  return fmt::format("{}{} of pinned host memory", peak, format_bytes(memory.host_pinned_bytes));
}

std::string leak_line(const MemoryReport& memory, const TextStyle& style) {
  if (!memory.leaked_bytes) {
    return "unknown: the devices' free memory was not compared with the books";
  }
  const int64_t leaked = *memory.leaked_bytes;
  const auto amount = format_bytes(static_cast<uint64_t>(std::max<int64_t>(leaked, 0)));
  if (leaked > memory.leak_tolerance_bytes) {
    return paint(fmt::format("{} leaked", amount), Verdict::kBad, style) +
           ": a device holds this much more than the books say";
  }
  return paint("none", Verdict::kGood, style) + ": after every phase the devices hold what the " +
         (leaked > 0 ? fmt::format("books say, within {} of the driver's own", amount)
                     : "books say");
}

std::string digest_line(const Report& report, const TextStyle& style) {
  uint64_t tensors = 0;
  uint64_t wrong = 0;
  const DigestReport* last = nullptr;
  std::vector<std::string> names;
  for (const auto& version : report.versions) {
    if (!version.digest) continue;
    last = &*version.digest;
    tensors = std::max(tensors, last->tensors);
    wrong += last->mismatched;
    for (const auto& name : last->mismatches) names.push_back(name);
  }
  if (last == nullptr) return "not compared";
  const auto verdict =
      paint(fmt::format("{} wrong", wrong), wrong == 0 ? Verdict::kGood : Verdict::kBad, style);
  const auto where = names.empty() ? "" : fmt::format(" ({})", fmt::join(names, ", "));
  return fmt::format("{} tensors, {}{}, model {:#018x}", tensors, verdict, where, last->model);
}

std::string commit_line(const Report& report, const TextStyle& style) {
  const auto poisoned =
      report.poisoned
          ? paint("; inference weights may be mixed: serve nothing before an update commits",
                  Verdict::kBad, style)
          : "";
  if (!report.committed_version) return "no version" + poisoned;
  return fmt::format("version {}", *report.committed_version) + poisoned;
}

std::string result_line(const Report& report, const TextStyle& style) {
  if (report.exit_code() == ExitCode::kOk) return paint("ok", Verdict::kGood, style);
  return paint(fmt::format("failed with exit code {}", static_cast<int>(report.exit_code())),
               Verdict::kBad, style) +
         (report.error ? fmt::format(": {}", report.error->what()) : "");
}

/// Whether weights were to be handed over, so that digests and commits mean something.
bool hands_over(const Report& report) {
  return report.command == "update" || report.command == "transfer";
}

std::string verdicts(const Report& report, const TextStyle& style) {
  std::string out = "\n";
  const auto line = [&](const char* key, const std::string& text) {
    constexpr size_t kKeyWidth = 11;
    out += fmt::format("{:<10} {}\n", key, fitted(text, style.width, kKeyWidth));
  };
  // A run that failed before its first version has no verdict on memory, digests or commits.
  if (!report.versions.empty()) {
    line("memory", memory_line(report.memory));
    line("leak", leak_line(report.memory, style));
  }
  if (!report.versions.empty() && hands_over(report)) {
    line("digest", digest_line(report, style));
    line("committed", commit_line(report, style));
  }
  line("result", result_line(report, style));
  return out;
}

}  // namespace

std::string render_table(const Report& report, const TextStyle& style) {
  const size_t width = style.width;
  return metadata(report, width) + phases_table(report, width) + versions_table(report, width) +
         timeline(report, style) + memory_table(report.memory, width) + verdicts(report, style);
}

}  // namespace awex
