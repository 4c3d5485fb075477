#include "cli/render_doctor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/build_identity.hpp"
#include "base/error_json.hpp"
#include "base/json_values.hpp"
#include "cli/wrapped_text.hpp"

namespace awex {
namespace {

constexpr size_t kCheckWidth = 16;
constexpr size_t kVerdictWidth = 8;

/// Ranks that have found the same.
struct Group {
  std::vector<int> ranks;
  const Finding* finding = nullptr;
};

std::vector<Group> groups_of(const DoctorReport& report, size_t check) {
  std::vector<Group> groups;
  for (const auto& rank : report.ranks) {
    const auto& finding = rank.findings.at(check);
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
      return group.finding->verdict == finding.verdict && group.finding->reason == finding.reason &&
             group.finding->remedy == finding.remedy;
    });
    if (same == groups.end()) {
      groups.push_back({{rank.rank}, &finding});
    } else {
      same->ranks.push_back(rank.rank);
    }
  }
  return groups;
}

std::string colored(const std::string& text, Verdict verdict, const TextStyle& style) {
  if (!style.color) return text;
  const char* code = "32";
  if (verdict == Verdict::kWaived) code = "33";
  if (verdict == Verdict::kFailed) code = "31";
  return fmt::format("\033[{}m{}\033[0m", code, text);
}

std::string metadata(const DoctorReport& report, size_t width) {
  std::string out = fmt::format("# command    doctor, started {}\n", report.started_at);
  out +=
      fmt::format("# world      {} rank{}, {} node{}\n", report.ranks.size(),
                  report.ranks.size() == 1 ? "" : "s", report.nodes, report.nodes == 1 ? "" : "s");
  if (report.backend) out += fmt::format("# backend    {}\n", backend_name(*report.backend));
  if (report.nodes < 2) return out;
  std::vector<std::pair<std::string, std::vector<int>>> hosts;
  for (const auto& rank : report.ranks) {
    if (hosts.empty() || hosts.back().first != rank.host) hosts.push_back({rank.host, {}});
    hosts.back().second.push_back(rank.rank);
  }
  for (const auto& [host, ranks] : hosts) {
    const std::string margin = "#            ";
    out += fmt::format("# host       {}\n",
                       fitted(fmt::format("{}: ranks {}", host, rank_list(ranks)), width, margin));
  }
  return out;
}

/// What fits of a list of ranks.
std::string shortened(const std::string& list, size_t width) {
  if (list.size() <= width) return list;
  const std::string more = ",...";
  const size_t room = width - more.size();
  return list.substr(0, std::min(room, list.rfind(',', room))) + more;
}

/// The lines of one check on the ranks of a group.
std::string group_lines(const char* check, const Group& group, size_t ranks_width,
                        const TextStyle& style) {
  const size_t indent = kCheckWidth + ranks_width + kVerdictWidth;
  const auto& finding = *group.finding;
  std::string out =
      fmt::format("{:<{}}{:<{}}{}", check, kCheckWidth,
                  shortened(rank_list(group.ranks), ranks_width - 2), ranks_width,
                  colored(fmt::format("{:<{}}", verdict_name(finding.verdict), kVerdictWidth),
                          finding.verdict, style));
  constexpr size_t kMargin = 4;
  constexpr size_t kLeastRoom = 20;
  if (style.width >= indent + kLeastRoom) {
    out += fitted(finding.reason, style.width, indent) + "\n";
  } else {
    out += "\n" + std::string(kMargin, ' ') + fitted(finding.reason, style.width, kMargin) + "\n";
  }
  if (finding.remedy.empty()) return out;
  return out + std::string(kMargin, ' ') +
         fitted("remedy: " + finding.remedy, style.width, kMargin) + "\n";
}

std::string result_line(const DoctorReport& report, const TextStyle& style) {
  std::array<size_t, 3> counts{};
  std::vector<std::string> bad;
  for (size_t check = 0; check < kChecks; ++check) {
    auto worst = Verdict::kPassed;
    for (const auto& rank : report.ranks) {
      worst = std::max(worst, rank.findings.at(check).verdict);
    }
    ++counts.at(static_cast<size_t>(worst));
    if (worst == Verdict::kFailed) bad.emplace_back(check_name(static_cast<Check>(check)));
  }
  if (report.error) {
    return colored("result     the examination has failed\n", Verdict::kFailed, style);
  }
  const auto text = bad.empty() ? fmt::format("an update can run: {} checks passed, {} waived",
                                              counts[0], counts[1])
                                : fmt::format("an update cannot run: {} of {} checks failed: {}",
                                              bad.size(), kChecks, fmt::join(bad, ", "));
  constexpr const char* kKey = "result     ";
  return kKey +
         colored(fitted(text, style.width, std::strlen(kKey)),
                 bad.empty() ? Verdict::kPassed : Verdict::kFailed, style) +
         "\n";
}

Json value_json(double value) {
  constexpr double kLargestWhole = 1e15;
  const bool whole = std::floor(value) == value && std::abs(value) < kLargestWhole;
  return whole ? Json(static_cast<int64_t>(value)) : Json(value);
}

Json finding_json(size_t check, const Finding& finding) {
  Json values = Json::object();
  for (const auto& [name, value] : finding.values) values[name] = value_json(value);
  return {{"check", check_name(static_cast<Check>(check))},
          {"verdict", verdict_name(finding.verdict)},
          {"reason", finding.reason},
          {"remedy", text_or_null(finding.remedy)},
          {"values", values}};
}

std::string uuid_text(const std::array<uint8_t, 16>& uuid) {
  std::string text = "GPU-";
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", uuid.at(i));
  }
  return text;
}

Json gpu_json(const std::optional<DeviceIdentity>& gpu) {
  if (!gpu) return {};
  return {{"index", gpu->index}, {"uuid", uuid_text(gpu->uuid)}, {"name", gpu->name}};
}

Json rank_json(const RankExamination& rank) {
  Json checks = Json::array();
  for (size_t check = 0; check < kChecks; ++check) {
    checks.push_back(finding_json(check, rank.findings.at(check)));
  }
  return {{"rank", rank.rank},
          {"host", rank.host},
          {"pid", rank.pid},
          {"role", rank.role ? Json(role_name(*rank.role)) : Json()},
          {"partner", value_or_null(rank.partner)},
          {"gpu", gpu_json(rank.gpu)},
          {"checks", checks}};
}

Json error_of(const DoctorReport& report) {
  if (report.error) return error_json(*report.error);
  if (report.finished) return {};
  return error_json(runtime_error("the examination has not finished",
                                  "it is still running, or its rank 0 was killed before it could "
                                  "write its report"));
}

}  // namespace

std::string rank_list(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += last == i ? fmt::format("{}", ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[last]);
    i = last + 1;
  }
  return text;
}

std::string render_doctor(const DoctorReport& report, const TextStyle& style) {
  constexpr size_t kWidestRanks = 16;
  std::string out = metadata(report, style.width);
  if (report.ranks.empty()) return out + "\n" + result_line(report, style);
  size_t ranks_width = 7;
  for (size_t check = 0; check < kChecks; ++check) {
    for (const auto& group : groups_of(report, check)) {
      ranks_width = std::max(ranks_width, rank_list(group.ranks).size() + 2);
    }
  }
  ranks_width = std::min(ranks_width, kWidestRanks);
  out += fmt::format("\n{:<{}}{:<{}}{:<{}}reason\n", "check", kCheckWidth, "ranks", ranks_width,
                     "verdict", kVerdictWidth);
  for (size_t check = 0; check < kChecks; ++check) {
    for (const auto& group : groups_of(report, check)) {
      out += group_lines(check_name(static_cast<Check>(check)), group, ranks_width, style);
    }
  }
  return out + "\n" + result_line(report, style);
}

std::string render_doctor_json(const DoctorReport& report) {
  Json ranks = Json::array();
  for (const auto& rank : report.ranks) ranks.push_back(rank_json(rank));
  const Json json = {{"schema_version", 1},
                     {"command", "doctor"},
                     {"ok", report.exit_code() == ExitCode::kOk},
                     {"exit_code", static_cast<int>(report.exit_code())},
                     {"program", fmt::format("awex-colocate {}", build_identity())},
                     {"backend", report.backend ? Json(backend_name(*report.backend)) : Json()},
                     {"started_at", text_or_null(report.started_at)},
                     {"world",
                      {{"ranks", report.ranks.empty() ? Json() : Json(report.ranks.size())},
                       {"gpus", report.gpus > 0 ? Json(report.gpus) : Json()},
                       {"nodes", report.nodes > 0 ? Json(report.nodes) : Json()}}},
                     {"ranks", ranks},
                     {"error", error_of(report)}};
  return indented_text(json);
}

}  // namespace awex
