#include "serve/job_status.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

namespace {

using namespace awex;
using Json = nlohmann::json;

Json rendered(const JobStatus& status) {
  const auto text = render_status_json(status);
  CHECK(text.back() == '\n');
  return Json::parse(text);
}

TEST_CASE("of a job that begins nothing is known but that") {
  const auto json = rendered({});
  CHECK(json["schema_version"] == 1);
  CHECK(json["activity"] == "starting");
  CHECK(json["content"] == "empty");
  CHECK(json["ranks"] == Json::array());
  CHECK(json["waits"] == Json::array());
  CHECK(json["queued"] == 0);
  for (const char* key : {"command", "phase", "started_at", "build", "backend", "model", "trainer",
                          "inference", "committed_version", "last_error", "last_error_at"}) {
    CAPTURE(key);
    CHECK(json.at(key).is_null());
  }
  CHECK(json["memory"]["leaked_bytes"].is_null());
  CHECK(json["memory"]["leak_tolerance_bytes"] == 0);
}

TEST_CASE("all that is known of a job and its ranks is told") {
  constexpr auto kMost = std::numeric_limits<uint64_t>::max();
  JobStatus status;
  status.activity = JobStatus::Activity::kRunning;
  status.command = "update";
  status.phase = "transfer";
  status.since_s = 1.5;
  status.queued = 2;
  status.commands = 7;
  status.failures = 3;
  status.epoch = 4;
  status.started_at = "2026-11-27T10:00:00Z";
  status.build = "0.1.0+g1";
  status.backend = "cuda";
  status.model_name = "bytes \xff of no text";
  status.trainer = "megatron:tp=2";
  status.inference = "vllm:tp=2";
  status.content = ContentState::kPoisoned;
  status.committed_version = 12;
  status.memory.device_peak_bytes = 1000;
  status.memory.host_pinned_bytes = 500;
  status.memory.leaked_bytes = -64;
  status.memory.leak_tolerance_bytes = 32;
  status.memory.by_role_and_tag = {{"trainer", "optimizer", 700, 500}};
  Error error(ExitCode::kMismatch, "tensors differ", "look");
  error.context().rank = 1;
  status.last_error = error;
  status.last_error_at = "2026-11-27T10:05:00Z";
  status.rank_infos = {{0, "trainer", "a", "0 H100"}, {1, "inference", "b", "1 H100"}};
  RankStatus first;
  first.pid = 41;
  first.engine = fixed_text<32>("stand-in");
  first.memory[static_cast<size_t>(Tag::kOptimizer)] =
      RankStatus::Memory{RegionState::kOffloading, kMost, 1, 2};
  first.memory[static_cast<size_t>(Tag::kKvCache)] = RankStatus::Memory{};
  first.staging_bytes = 3;
  first.device_free_bytes = 4;
  first.leaked_bytes = -3;
  first.device_total_bytes = 5;
  first.resident_set_bytes = 6;
  first.host_limit_bytes = 7;
  first.host_used_bytes = 8;
  first.lock_limit_bytes = 9;
  first.steps = 10;
  status.ranks = {first};  // the second has not told anything yet
  const auto json = rendered(status);
  CHECK(json["activity"] == "running");
  CHECK(json["command"] == "update");
  CHECK(json["phase"] == "transfer");
  CHECK(json["since_s"] == 1.5);
  CHECK(json["queued"] == 2);
  CHECK(json["commands"] == 7);
  CHECK(json["failures"] == 3);
  CHECK(json["epoch"] == 4);
  CHECK(json["started_at"] == "2026-11-27T10:00:00Z");
  CHECK(json["build"] == "0.1.0+g1");
  CHECK(json["backend"] == "cuda");
  CHECK(json["model"] == "bytes \xef\xbf\xbd of no text");
  CHECK(json["trainer"] == "megatron:tp=2");
  CHECK(json["inference"] == "vllm:tp=2");
  CHECK(json["content"] == "poisoned");
  CHECK(json["committed_version"] == 12);
  CHECK(json["memory"] == Json{{"device_peak_bytes", 1000},
                               {"host_pinned_bytes", 500},
                               {"leaked_bytes", -64},
                               {"leak_tolerance_bytes", 32},
                               {"by_role_and_tag",
                                {{{"role", "trainer"},
                                  {"tag", "optimizer"},
                                  {"device_peak_bytes", 700},
                                  {"host_pinned_bytes", 500}}}}});
  CHECK(json["last_error"]["code"] == 3);
  CHECK(json["last_error"]["rank"] == 1);
  CHECK(json["last_error"]["message"] == "tensors differ");
  CHECK(json["last_error"]["hint"] == "look");
  CHECK(json["last_error_at"] == "2026-11-27T10:05:00Z");
  REQUIRE(json["ranks"].size() == 2);
  CHECK(json["ranks"][0] == Json{{"rank", 0},
                                 {"role", "trainer"},
                                 {"host", "a"},
                                 {"gpu", "0 H100"},
                                 {"engine", "stand-in"},
                                 {"pid", 41},
                                 {"tags",
                                  {{{"tag", "optimizer"},
                                    {"state", "offloading"},
                                    {"bytes", kMost},
                                    {"device_bytes", 1},
                                    {"host_bytes", 2}},
                                   {{"tag", "kv_cache"},
                                    {"state", "discarded"},
                                    {"bytes", 0},
                                    {"device_bytes", 0},
                                    {"host_bytes", 0}}}},
                                 {"staging_bytes", 3},
                                 {"device_free_bytes", 4},
                                 {"leaked_bytes", -3},
                                 {"device_total_bytes", 5},
                                 {"resident_set_bytes", 6},
                                 {"host_limit_bytes", 7},
                                 {"host_used_bytes", 8},
                                 {"lock_limit_bytes", 9},
                                 {"steps", 10}});
  CHECK(json["ranks"][1]["role"] == "inference");
  CHECK(json["ranks"][1]["host"] == "b");
  for (const char* key : {"engine", "pid", "tags", "staging_bytes", "steps", "lock_limit_bytes"}) {
    CAPTURE(key);
    CHECK(json["ranks"][1].at(key).is_null());
  }
}

TEST_CASE("whom the ranks of a job that starts wait for is told") {
  JobStatus status;
  status.waits = {{3, "inference", "b", "an engine to attach"}};
  CHECK(
      rendered(status)["waits"] ==
      Json{{{"rank", 3}, {"role", "inference"}, {"host", "b"}, {"awaits", "an engine to attach"}}});
}

TEST_CASE("a look adds what the board is not told of, anew for each read") {
  StatusBoard board;
  CHECK(board.read().waits.empty());
  int looks = 0;
  board.look_with([&](JobStatus& status) { status.waits.push_back({++looks, "", "", ""}); });
  CHECK(board.read().waits.at(0).rank == 1);
  const auto again = board.read();
  REQUIRE(again.waits.size() == 1);
  CHECK(again.waits[0].rank == 2);
}

TEST_CASE("each activity has a name of its own") {
  using Activity = JobStatus::Activity;
  CHECK(std::string(activity_name(Activity::kStarting)) == "starting");
  CHECK(std::string(activity_name(Activity::kIdle)) == "idle");
  CHECK(std::string(activity_name(Activity::kRunning)) == "running");
  CHECK(std::string(activity_name(Activity::kRecovering)) == "recovering");
  CHECK(std::string(activity_name(Activity::kEnding)) == "ending");
}

TEST_CASE("the board knows how long a phase has lasted, whatever else changes meanwhile") {
  StatusBoard board;
  const auto wait = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
  board.update([](JobStatus& status) { status.phase = "transfer"; });
  wait();
  board.update([](JobStatus& status) { status.queued = 1; });
  const auto before = board.read();
  CHECK(before.phase == "transfer");
  CHECK(before.since_s >= 0.02);
  wait();
  CHECK(board.read().since_s >= before.since_s + 0.02);
  board.update([](JobStatus& status) { status.phase = "verify"; });
  const auto later = board.read().since_s;
  wait();
  CHECK(board.read().since_s >= later + 0.02);
  const Stopwatch since_last;
  board.update([](JobStatus& status) { status.activity = JobStatus::Activity::kRecovering; });
  const auto last = board.read().since_s;
  CHECK(last <= since_last.seconds());
}

}  // namespace
