#include "cli/render_trace.hpp"

#include <fmt/format.h>

#include <map>

#include "base/json_values.hpp"

namespace awex {
namespace {

constexpr double kMicrosecondsPerSecond = 1e6;

/// What the thread of phases that are about no memory is called.
const std::string kNoTag = "cycle";

const std::string& thread_of(const PhaseReport& phase) {
  return phase.tag.empty() ? kNoTag : phase.tag;
}

/// Thread ids by tag, the same for every rank, from 1.
std::map<std::string, int> thread_ids(const Report& report) {
  std::map<std::string, int> ids;
  for (const auto& version : report.versions) {
    for (const auto& phase : version.phases) ids.emplace(thread_of(phase), 0);
  }
  int next = 1;
  for (auto& [tag, id] : ids) id = next++;
  return ids;
}

Json metadata(const char* what, int pid, int tid, Json args) {
  return {{"ph", "M"}, {"name", what}, {"pid", pid}, {"tid", tid}, {"args", std::move(args)}};
}

void add_rank_names(Json& events, const RankInfo& info, const std::map<std::string, int>& threads) {
  const auto name =
      fmt::format("rank {} {} ({}, gpu {})", info.rank, info.role, info.host, info.gpu);
  events.push_back(metadata("process_name", info.rank, 0, {{"name", name}}));
  events.push_back(metadata("process_sort_index", info.rank, 0, {{"sort_index", info.rank}}));
  for (const auto& [tag, id] : threads) {
    events.push_back(metadata("thread_name", info.rank, id, {{"name", tag}}));
  }
}

Json phase_event(const VersionReport& version, const PhaseReport& phase, const RankPhase& rank,
                 int tid) {
  const auto name = phase.tag.empty() ? phase.phase : fmt::format("{} {}", phase.phase, phase.tag);
  Json args = {{"version", version.version}, {"bytes", rank.bytes}};
  if (rank.bytes > 0 && rank.seconds > 0) {
    args["bytes_per_s"] = static_cast<double>(rank.bytes) / rank.seconds;
  }
  return {{"ph", "X"},
          {"name", name},
          {"cat", phase.role},
          {"pid", rank.rank},
          {"tid", tid},
          {"ts", rank.start_s * kMicrosecondsPerSecond},
          {"dur", rank.seconds * kMicrosecondsPerSecond},
          {"args", std::move(args)}};
}

}  // namespace

std::string render_trace(const Report& report) {
  const auto threads = thread_ids(report);
  Json events = Json::array();
  for (const auto& info : report.rank_infos) add_rank_names(events, info, threads);
  for (const auto& version : report.versions) {
    for (const auto& phase : version.phases) {
      for (const auto& rank : phase.ranks) {
        events.push_back(phase_event(version, phase, rank, threads.at(thread_of(phase))));
      }
    }
  }
  const Json json = {{"traceEvents", std::move(events)},
                     {"displayTimeUnit", "ms"},
                     {"otherData",
                      {{"command", report.command},
                       {"model", report.model_name},
                       {"exit_code", static_cast<int>(report.exit_code())},
                       {"finished", report.finished}}}};
  return compact_text(json) + "\n";
}

}  // namespace awex
