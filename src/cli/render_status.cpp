#include "cli/render_status.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/json_values.hpp"
#include "base/units.hpp"
#include "cli/text_table.hpp"
#include "cli/wrapped_text.hpp"
#include "cycle/rank_status.hpp"

namespace awex {
namespace {

const std::string kUnknown = "-";
constexpr size_t kKeyWidth = 11;  ///< Of the lines about the job.
const std::array<const char*, kTags> kTagNames{tag_name(Tag::kWeights), tag_name(Tag::kOptimizer),
                                               tag_name(Tag::kKvCache)};

// The job is a process of its own, and may be of another build: what it does not say is unknown.

const Json& member(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

std::string text(const Json& object, const char* key) {
  const auto& value = member(object, key);
  return value.is_string() ? value.get<std::string>() : "";
}

std::optional<uint64_t> count(const Json& object, const char* key) {
  const auto& value = member(object, key);
  return value.is_number_unsigned() ? std::optional(value.get<uint64_t>()) : std::nullopt;
}

std::string count_text(const Json& object, const char* key) {
  const auto value = count(object, key);
  return value ? fmt::format("{}", *value) : kUnknown;
}

std::string bytes_text(const std::optional<uint64_t>& bytes) {
  return bytes ? format_bytes(*bytes) : kUnknown;
}

std::string counted(uint64_t number, const char* one, const char* many) {
  return fmt::format("{} {}", number, number == 1 ? one : many);
}

std::string paint(const std::string& words, const char* code, const TextStyle& style) {
  return style.color ? fmt::format("\033[{}m{}\033[0m", code, words) : words;
}
std::string good(const std::string& words, const TextStyle& style) {
  return paint(words, "32", style);
}
std::string bad(const std::string& words, const TextStyle& style) {
  return paint(words, "31", style);
}

Json parse_status(const std::string& json) {
  auto status = Json::parse(json, nullptr, false);
  if (!status.is_object()) {
    throw runtime_error("the job's status is no JSON object",
                        "use the awex-colocate that the job was started with");
  }
  return status;
}

const Json& list_of(const Json& object, const char* key) {
  static const Json kNone = Json::array();
  const auto& list = member(object, key);
  return list.is_array() ? list : kNone;
}

/// A line about the job; nothing where there is nothing to say.
std::string line(const char* key, const std::string& words, const TextStyle& style) {
  if (words.empty()) return {};
  return fmt::format("{:<{}}{}\n", key, kKeyWidth, fitted(words, style.width, kKeyWidth));
}

std::string activity_line(const Json& status) {
  auto words = text(status, "activity");
  if (words.empty()) words = "unknown";
  if (const auto command = text(status, "command"); !command.empty()) words += " " + command;
  if (const auto phase = text(status, "phase"); !phase.empty()) words += ", in phase " + phase;
  const auto& since = member(status, "since_s");
  if (since.is_number() && since.get<double>() > 0) {
    words += " for " + format_seconds(since.get<double>());
  }
  return words;
}

std::string commands_line(const Json& status) {
  const auto commands = count(status, "commands").value_or(0);
  const auto failures = count(status, "failures").value_or(0);
  const auto queued = count(status, "queued").value_or(0);
  return fmt::format("{} done, {} of them failed; {} waiting", commands, failures, queued);
}

std::string start_line(const Json& status) {
  const auto started = text(status, "started_at");
  auto build = text(status, "build");
  if (started.empty()) return build;
  return build.empty() ? started : fmt::format("{}, build {}", started, build);
}

std::string content_line(const Json& status, const TextStyle& style) {
  const auto content = text(status, "content");
  const auto version = count(status, "committed_version");
  if (content == "committed") {
    return good(version ? fmt::format("version {}, committed", *version) : content, style);
  }
  const auto last = version ? fmt::format("; version {} was the last committed", *version) : "";
  if (content == "poisoned") {
    return bad("poisoned", style) +
           ": inference weights may be mixed, serve nothing before an "
           "update commits" +
           last;
  }
  return content.empty() ? "" : content + last;
}

std::string memory_line(const Json& memory) {
  const auto pinned = count(memory, "host_pinned_bytes");
  if (!pinned) return {};
  const auto peak = count(memory, "device_peak_bytes");
  return fmt::format("{}{} of pinned host memory",
                     peak ? format_bytes(*peak) + " at the peak of the fullest device, " : "",
                     format_bytes(*pinned));
}

/// "rank 0 (pid 41), rank 1 (pid 42)": whose processes a leak may be of.
std::string leaking_ranks(const Json& status, uint64_t tolerance) {
  std::vector<std::string> ranks;
  for (const auto& rank : list_of(status, "ranks")) {
    if (count(rank, "leaked_bytes").value_or(0) <= tolerance) continue;
    ranks.push_back(
        fmt::format("rank {} (pid {})", count_text(rank, "rank"), count_text(rank, "pid")));
  }
  return fmt::format("{}", fmt::join(ranks, ", "));
}

std::string leak_line(const Json& status, const TextStyle& style) {
  const auto& memory = member(status, "memory");
  const auto& leaked = member(memory, "leaked_bytes");
  if (!leaked.is_number_integer()) return "unknown: not compared with the books yet";
  // Less than the books say is no leak.
  const auto bytes = count(memory, "leaked_bytes").value_or(0);
  const auto tolerance = count(memory, "leak_tolerance_bytes").value_or(0);
  if (bytes > tolerance) {
    const auto ranks = leaking_ranks(status, tolerance);
    return bad(format_bytes(bytes) + " leaked", style) + ": more than the books say" +
           (ranks.empty() ? "" : ", in " + ranks);
  }
  return good("none", style) + ": the devices hold what the books say" +
         (bytes > 0 ? fmt::format(", within {} of the driver's own", format_bytes(bytes)) : "");
}

/// Of a job that starts: whom its ranks wait for.
std::string wait_lines(const Json& status, const TextStyle& style) {
  constexpr size_t kMostLines = 8;
  const auto& waits = list_of(status, "waits");
  const char* key = "waits";
  std::string out;
  for (size_t i = 0; i < std::min(waits.size(), kMostLines); ++i) {
    out +=
        line(std::exchange(key, ""),
             fmt::format("rank {} ({}, host {}): for {}", count_text(waits[i], "rank"),
                         text(waits[i], "role"), text(waits[i], "host"), text(waits[i], "awaits")),
             style);
  }
  if (waits.size() <= kMostLines) return out;
  return out + line("",
                    fmt::format("and {} (--json names all)",
                                counted(waits.size() - kMostLines, "more rank", "more ranks")),
                    style);
}

std::string gpus_line(const Json& status) {
  std::set<std::string> names;
  for (const auto& rank : list_of(status, "ranks")) {
    const auto gpu = text(rank, "gpu");
    const auto blank = gpu.find(' ');
    if (blank != std::string::npos) names.insert(gpu.substr(blank + 1));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

/// A rank's memory of a tag; null where it holds none of it.
const Json& memory_of(const Json& rank, const char* tag) {
  static const Json kNull;
  for (const auto& memory : list_of(rank, "tags")) {
    if (text(memory, "tag") == tag) return memory;
  }
  return kNull;
}

uint64_t host_bytes_of(const Json& rank) {
  uint64_t all = 0;
  for (const auto& memory : list_of(rank, "tags")) all += count(memory, "host_bytes").value_or(0);
  return all;
}

/// Names of hosts and engines, which may be long, differ at their ends. `longest` is what fits
/// kTextWidth; who has more sees more.
std::string shortened(const std::string& name, size_t longest, const TextStyle& style) {
  longest += style.width - std::min(style.width, kTextWidth);
  if (name.size() <= longest) return name;
  const size_t kept = longest - 2;
  return name.substr(0, kept / 2) + ".." + name.substr(name.size() - (kept - kept / 2));
}

/// What the ranks of a host take of it.
struct HostUse {
  uint64_t ranks = 0;
  uint64_t pinned_bytes = 0;
  uint64_t most_pinned_bytes = 0;  ///< By one rank: the limit of locked memory is a process's.
  std::optional<uint64_t> lock_limit_bytes;  ///< The tightest.
  std::optional<uint64_t> cgroup_limit_bytes;
  std::optional<uint64_t> cgroup_used_bytes;  ///< Of the cgroup with the least room.
};

void add_rank(HostUse& host, const Json& rank) {
  ++host.ranks;
  const auto pinned = host_bytes_of(rank);
  host.pinned_bytes += pinned;
  host.most_pinned_bytes = std::max(host.most_pinned_bytes, pinned);
  if (const auto lockable = count(rank, "lock_limit_bytes")) {
    host.lock_limit_bytes = std::min(*lockable, host.lock_limit_bytes.value_or(*lockable));
  }
  const auto limit = count(rank, "host_limit_bytes");
  const auto used = count(rank, "host_used_bytes");
  if (!limit || !used) return;
  const auto room = [](uint64_t all, uint64_t taken) { return all > taken ? all - taken : 0; };
  const bool tighter =
      !host.cgroup_limit_bytes ||
      room(*limit, *used) < room(*host.cgroup_limit_bytes, *host.cgroup_used_bytes);
  if (tighter) host.cgroup_limit_bytes = limit, host.cgroup_used_bytes = used;
}

/// `locks`: whether pinned memory is locked, as it is for GPUs.
std::string lock_text(const HostUse& host, bool locks) {
  if (!host.lock_limit_bytes) return "no memlock limit";
  const auto limit = format_bytes(*host.lock_limit_bytes);
  if (!locks) return fmt::format("memlock {} a process, not needed", limit);
  return fmt::format("memlock {} of {} a process", format_bytes(host.most_pinned_bytes), limit);
}

std::string host_line(const std::string& name, const HostUse& host, bool locks) {
  const auto cgroup = host.cgroup_limit_bytes
                          ? fmt::format("cgroup {} of {}", format_bytes(*host.cgroup_used_bytes),
                                        format_bytes(*host.cgroup_limit_bytes))
                          : "no cgroup limit";
  return fmt::format("{}: {} pinned by {}; {}; {}", name, format_bytes(host.pinned_bytes),
                     counted(host.ranks, "rank", "ranks"), cgroup, lock_text(host, locks));
}

std::string host_lines(const Json& status, const TextStyle& style) {
  std::map<std::string, HostUse> hosts;
  for (const auto& rank : list_of(status, "ranks")) {
    if (member(rank, "tags").is_array()) add_rank(hosts[text(rank, "host")], rank);
  }
  const bool locks = text(status, "backend") != backend_name(BackendKind::kHost);
  std::string out;
  for (const auto& [name, host] : hosts) {
    out += line("host", host_line(shortened(name, 30, style), host, locks), style);
  }
  return out;
}

/// "rank 3 (inference, host a, gpu 0): in phase transfer: "
std::string origin(const Json& error) {
  std::vector<std::string> parts;
  for (const auto& [key, before] : {std::pair{"role", ""}, {"host", "host "}, {"gpu", "gpu "}}) {
    if (const auto value = text(error, key); !value.empty()) parts.push_back(before + value);
  }
  std::string out;
  if (const auto rank = count(error, "rank")) {
    out = fmt::format("rank {}{}: ", *rank,
                      parts.empty() ? "" : fmt::format(" ({})", fmt::join(parts, ", ")));
  }
  const auto phase = text(error, "phase");
  return phase.empty() ? out : out + fmt::format("in phase {}: ", phase);
}

std::string last_error_lines(const Json& status, const TextStyle& style) {
  const auto& error = member(status, "last_error");
  if (!error.is_object()) return line("last error", "none", style);
  const auto at = text(status, "last_error_at");
  const auto exit_code = fmt::format("exit code {}", count_text(error, "code"));
  auto out = line(
      "last error",
      at.empty() ? bad(exit_code, style) : fmt::format("{}, {}", at, bad(exit_code, style)), style);
  out += line("", origin(error) + text(error, "message"), style);
  const auto hint = text(error, "hint");
  return hint.empty() ? out : out + line("", "hint: " + hint, style);
}

std::string job_lines(const Json& status, const TextStyle& style) {
  const auto& memory = member(status, "memory");
  const auto model = text(status, "model");
  const auto backend = text(status, "backend");
  std::string out;
  const auto add = [&](const char* key, const std::string& words) {
    out += line(key, words, style);
  };
  add("job", activity_line(status));
  out += wait_lines(status, style);
  add("commands", commands_line(status));
  add("started", start_line(status));
  add("model", model.empty() || backend.empty() ? model : fmt::format("{}, on {}", model, backend));
  add("trainer", text(status, "trainer"));
  add("inference", text(status, "inference"));
  add("content", content_line(status, style));
  add("memory", memory_line(memory));
  add("leak", leak_line(status, style));
  add("gpus", gpus_line(status));
  return out + host_lines(status, style) + last_error_lines(status, style);
}

std::vector<std::string> cells_of_rank(const Json& rank, const TextStyle& style) {
  const auto gpu = text(rank, "gpu");
  const auto or_unknown = [](const std::string& value) { return value.empty() ? kUnknown : value; };
  return {count_text(rank, "rank"), or_unknown(shortened(text(rank, "host"), 14, style)),
          or_unknown(gpu.substr(0, gpu.find(' '))),
          or_unknown(shortened(text(rank, "engine"), 10, style))};
}

/// The ranks of a role, a line each; the tags are those that any of them holds.
std::string role_table(const std::string& role, const std::vector<const Json*>& ranks,
                       const TextStyle& style) {
  constexpr auto kLeft = TextColumn::Align::kLeft;
  std::vector<TextColumn> columns{
      {"rank", ""}, {"host", "", kLeft}, {"gpu", ""}, {"engine", "", kLeft}};
  std::vector<const char*> tags;
  for (const auto* tag : kTagNames) {
    const bool held = std::any_of(ranks.begin(), ranks.end(), [tag](const Json* rank) {
      return memory_of(*rank, tag).is_object();
    });
    if (!held) continue;
    tags.push_back(tag);
    columns.push_back({tag, "", kLeft});
    columns.push_back({"", ""});
  }
  TextTable table(columns);
  for (const auto* rank : ranks) {
    auto cells = cells_of_rank(*rank, style);
    for (const auto* tag : tags) {
      const auto& memory = memory_of(*rank, tag);
      const auto state = text(memory, "state");
      cells.push_back(state.empty() ? kUnknown : state);
      cells.push_back(bytes_text(count(memory, "bytes")));
    }
    table.add_row(std::move(cells));
  }
  return fmt::format("\n{}\n{}", role.empty() ? "ranks" : role, table.text(style.width));
}

std::string rank_tables(const Json& status, const TextStyle& style) {
  std::vector<std::pair<std::string, std::vector<const Json*>>> roles;
  for (const auto& rank : list_of(status, "ranks")) {
    const auto role = text(rank, "role");
    const auto found = std::find_if(roles.begin(), roles.end(),
                                    [&role](const auto& entry) { return entry.first == role; });
    auto& ranks = found == roles.end() ? roles.emplace_back(role, std::vector<const Json*>{}).second
                                       : found->second;
    ranks.push_back(&rank);
  }
  std::string out;
  for (const auto& [role, ranks] : roles) out += role_table(role, ranks, style);
  return out;
}

/// Of engines that attach; nothing where none does.
std::string engine_table(const Json& status, const TextStyle& style) {
  constexpr auto kLeft = TextColumn::Align::kLeft;
  TextTable table({{"rank", ""},
                   {"engine", "", kLeft},
                   {"pid", ""},
                   {"steps", ""},
                   {"own", ""},
                   {"state", "", kLeft}});
  bool any = false;
  for (const auto& rank : list_of(status, "ranks")) {
    const auto state = text(rank, "engine_state");
    if (state.empty()) continue;
    any = true;
    table.add_row({count_text(rank, "rank"), text(rank, "engine"), count_text(rank, "engine_pid"),
                   text(rank, "role") == "trainer" ? count_text(rank, "steps") : kUnknown,
                   bytes_text(count(rank, "engine_own_bytes")), state});
  }
  return any ? "\nengines\n" + table.text(style.width) : "";
}

std::string process_table(const Json& status, const TextStyle& style) {
  TextTable table({{"rank", ""},
                   {"pid", ""},
                   {"steps", ""},
                   {"process", ""},
                   {"pinned", ""},
                   {"staging", ""},
                   {"gpu free", ""},
                   {"of", ""}});
  bool any = false;
  for (const auto& rank : list_of(status, "ranks")) {
    if (!count(rank, "pid")) continue;
    any = true;
    table.add_row({count_text(rank, "rank"), count_text(rank, "pid"), count_text(rank, "steps"),
                   bytes_text(count(rank, "resident_set_bytes")), format_bytes(host_bytes_of(rank)),
                   bytes_text(count(rank, "staging_bytes")),
                   bytes_text(count(rank, "device_free_bytes")),
                   bytes_text(count(rank, "device_total_bytes"))});
  }
  return any ? "\nprocesses\n" + table.text(style.width) : "";
}

}  // namespace

std::string render_status(const std::string& json, const TextStyle& style) {
  const auto status = parse_status(json);
  return job_lines(status, style) + rank_tables(status, style) + engine_table(status, style) +
         process_table(status, style);
}

std::string lasting_status(const std::string& json) {
  auto status = parse_status(json);
  status.erase("since_s");
  const auto ranks = status.find("ranks");
  if (ranks != status.end() && ranks->is_array()) {
    for (auto& rank : *ranks) {
      if (!rank.is_object()) continue;
      for (const auto* key : {"resident_set_bytes", "device_free_bytes", "host_used_bytes"}) {
        rank.erase(key);
      }
    }
  }
  return compact_text(status);
}

}  // namespace awex
