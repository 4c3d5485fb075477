#include "serve/job_status.hpp"

#include <algorithm>
#include <map>

#include "base/error_json.hpp"
#include "base/json_values.hpp"
#include "serve/memory_json.hpp"

namespace awex {
namespace {

/// What reports say of it, and how much more than the books is no leak.
Json memory_with_verdict(const MemoryReport& memory) {
  auto json = memory_json(memory);
  json["leak_tolerance_bytes"] = memory.leak_tolerance_bytes;
  return json;
}

Json tags_json(const RankStatus& rank) {
  Json tags = Json::array();
  for (size_t tag = 0; tag < kTags; ++tag) {
    const auto& memory = rank.memory.at(tag);
    if (!memory) continue;
    tags.push_back({{"tag", tag_name(static_cast<Tag>(tag))},
                    {"state", state_name(memory->state)},
                    {"bytes", memory->bytes},
                    {"device_bytes", memory->device_bytes},
                    {"host_bytes", memory->host_bytes}});
  }
  return tags;
}

/// Of a rank that has said what it holds, or of one that has only said who it is.
Json rank_json(int number, const RankInfo* info, const RankStatus* rank) {
  Json json = {{"rank", number},
               {"role", info != nullptr ? text_or_null(info->role) : Json()},
               {"host", info != nullptr ? text_or_null(info->host) : Json()},
               {"gpu", info != nullptr ? text_or_null(info->gpu) : Json()},
               {"engine", nullptr},
               {"pid", nullptr},
               {"tags", nullptr},
               {"staging_bytes", nullptr},
               {"device_free_bytes", nullptr},
               {"device_total_bytes", nullptr},
               {"leaked_bytes", nullptr},
               {"resident_set_bytes", nullptr},
               {"host_limit_bytes", nullptr},
               {"host_used_bytes", nullptr},
               {"lock_limit_bytes", nullptr},
               {"steps", nullptr}};
  if (rank == nullptr) return json;
  json["engine"] = text_or_null(text_of(rank->engine));
  json["pid"] = rank->pid > 0 ? Json(rank->pid) : Json();
  json["tags"] = tags_json(*rank);
  json["staging_bytes"] = rank->staging_bytes;
  json["device_free_bytes"] = rank->device_free_bytes;
  json["device_total_bytes"] = rank->device_total_bytes;
  json["leaked_bytes"] = value_or_null(rank->leaked_bytes);
  json["resident_set_bytes"] = rank->resident_set_bytes;
  json["host_limit_bytes"] = value_or_null(rank->host_limit_bytes);
  json["host_used_bytes"] = value_or_null(rank->host_used_bytes);
  json["lock_limit_bytes"] = value_or_null(rank->lock_limit_bytes);
  json["steps"] = rank->steps;
  if (rank->attendance) {
    const auto& engine = *rank->attendance;
    json["engine_pid"] = engine.pid > 0 ? Json(engine.pid) : Json();
    json["engine_state"] = text_or_null(text_of(engine.state));
    json["engine_own_bytes"] = engine.own_bytes;
  }
  return json;
}

Json ranks_json(const JobStatus& status) {
  std::map<int, const RankInfo*> infos;
  for (const auto& info : status.rank_infos) infos[info.rank] = &info;
  const auto told = static_cast<int>(status.ranks.size());
  const int known = infos.empty() ? 0 : infos.rbegin()->first + 1;
  Json ranks = Json::array();
  for (int rank = 0; rank < std::max(told, known); ++rank) {
    const auto info = infos.find(rank);
    ranks.push_back(rank_json(rank, info == infos.end() ? nullptr : info->second,
                              rank < told ? &status.ranks[static_cast<size_t>(rank)] : nullptr));
  }
  return ranks;
}

Json waits_json(const std::vector<RankWait>& waits) {
  Json json = Json::array();
  for (const auto& wait : waits) {
    json.push_back({{"rank", wait.rank},
                    {"role", text_or_null(wait.role)},
                    {"host", text_or_null(wait.host)},
                    {"awaits", text_or_null(wait.awaits)}});
  }
  return json;
}

}  // namespace

const char* activity_name(JobStatus::Activity activity) {
  switch (activity) {
    case JobStatus::Activity::kStarting:
      return "starting";
    case JobStatus::Activity::kIdle:
      return "idle";
    case JobStatus::Activity::kRunning:
      return "running";
    case JobStatus::Activity::kRecovering:
      return "recovering";
    case JobStatus::Activity::kEnding:
      return "ending";
  }
  return "";
}

std::string render_status_json(const JobStatus& status) {
  const Json json = {{"schema_version", 1},
                     {"activity", activity_name(status.activity)},
                     {"command", text_or_null(status.command)},
                     {"phase", text_or_null(status.phase)},
                     {"since_s", status.since_s},
                     {"queued", status.queued},
                     {"commands", status.commands},
                     {"failures", status.failures},
                     {"epoch", status.epoch},
                     {"started_at", text_or_null(status.started_at)},
                     {"build", text_or_null(status.build)},
                     {"backend", text_or_null(status.backend)},
                     {"model", text_or_null(status.model_name)},
                     {"trainer", text_or_null(status.trainer)},
                     {"inference", text_or_null(status.inference)},
                     {"content", content_name(status.content)},
                     {"committed_version", value_or_null(status.committed_version)},
                     {"memory", memory_with_verdict(status.memory)},
                     {"ranks", ranks_json(status)},
                     {"waits", waits_json(status.waits)},
                     {"last_error", status.last_error ? error_json(*status.last_error) : Json()},
                     {"last_error_at", text_or_null(status.last_error_at)}};
  return indented_text(json);
}

}  // namespace awex
