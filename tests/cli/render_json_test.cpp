#include "cli/render_json.hpp"

#include <doctest/doctest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "cli/sample_report.hpp"

namespace awex {
namespace {

using Json = nlohmann::json;

Json rendered(const Report& report) { return Json::parse(render_json(report)); }

std::set<std::string> keys(const Json& object) {
  std::set<std::string> names;
  for (const auto& [name, value] : object.items()) names.insert(name);
  return names;
}

using Keys = std::set<std::string>;

TEST_CASE("the JSON of a good run has every promised key with its value") {
  auto report = test::sample_report();
  report.one_core_ranks = {1};
  const auto json = rendered(report);
  CHECK(keys(json) == Keys{"schema_version", "command", "ok", "exit_code", "backend", "started_at",
                           "model", "trainer", "inference", "world", "plan", "versions",
                           "committed_version", "poisoned", "memory", "notes", "error"});
  CHECK(json["schema_version"] == 1);
  CHECK(json["command"] == "update");
  CHECK(json["ok"] == true);
  CHECK(json["exit_code"] == 0);
  CHECK(json["backend"] == "cuda");
  CHECK(json["started_at"] == "2026-05-04T03:02:01Z");
  CHECK(json["model"] == Json{{"name", "qwen3-4b"}, {"tensors", 398}, {"bytes", 8044936192}});
  CHECK(json["trainer"] == "megatron:tp=1");
  CHECK(json["inference"] == "sglang:tp=1");
  CHECK(json["world"] ==
        Json{{"ranks", 2}, {"gpus", 1}, {"nodes", 1}, {"one_core_ranks", Json::array({1})}});
  CHECK(json["plan"] == Json{{"seconds", 0.002},
                             {"pieces", 398},
                             {"local_bytes", 8044936192},
                             {"remote_bytes", 7},
                             {"remote_bytes_lower_bound", 5}});
  CHECK(json["committed_version"] == 1);
  CHECK(json["poisoned"] == false);
  CHECK(json["error"].is_null());
}

TEST_CASE("the JSON lists what the layout has to note, and is never without the list") {
  auto report = test::sample_report();
  CHECK(rendered(report)["notes"] == Json::array());
  report.notes = {"run the engine's own step", "start it with care"};
  CHECK(rendered(report)["notes"] ==
        Json::array({"run the engine's own step", "start it with care"}));
}

TEST_CASE("a version in the JSON has its phases with rates, and its digest as hex text") {
  const auto version = rendered(test::sample_report())["versions"].at(0);
  CHECK(keys(version) == Keys{"version", "committed", "seconds", "phases", "digest"});
  CHECK(version["version"] == 1);
  CHECK(version["committed"] == true);
  CHECK(version["seconds"] == 2.0);
  CHECK(version["digest"] ==
        Json{{"tensors", 398}, {"mismatched", 0}, {"model", "0x0123456789abcdef"}});
  REQUIRE(version["phases"].size() == 4);
  CHECK(version["phases"][0] == Json{{"phase", "offload"},
                                     {"role", "trainer"},
                                     {"tag", "optimizer"},
                                     {"start_s", 0.0},
                                     {"seconds", 1.0},
                                     {"bytes", 50'000'000'000},
                                     {"bytes_per_s", 50e9},
                                     {"limit_bytes_per_s", 62.5e9},
                                     {"ratio", 0.8}});
  CHECK(version["phases"][2]["bytes_per_s"] == 16e9);
  CHECK(version["phases"][2]["limit_bytes_per_s"].is_null());
  CHECK(version["phases"][2]["ratio"].is_null());
  CHECK(version["phases"][3]["tag"].is_null());
  CHECK(version["phases"][3]["bytes_per_s"].is_null());
}

TEST_CASE("memory in the JSON is in bytes, by role and tag") {
  const auto memory = rendered(test::sample_report())["memory"];
  CHECK(keys(memory) ==
        Keys{"device_peak_bytes", "host_pinned_bytes", "leaked_bytes", "by_role_and_tag"});
  CHECK(memory["device_peak_bytes"] == 64'000'000'000);
  CHECK(memory["host_pinned_bytes"] == 48'000'000'000);
  CHECK(memory["leaked_bytes"] == 0);
  CHECK(memory["by_role_and_tag"].size() == 2);
  CHECK(memory["by_role_and_tag"][1] == Json{{"role", "trainer"},
                                             {"tag", "optimizer"},
                                             {"device_peak_bytes", 48'000'000'000},
                                             {"host_pinned_bytes", 48'000'000'000}});
}

TEST_CASE("a failure is told with its whole context") {
  auto report = test::sample_report();
  report.error = test::sample_error();
  report.poisoned = true;
  report.versions[0].committed = false;
  report.committed_version.reset();
  const auto json = rendered(report);
  CHECK(json["ok"] == false);
  CHECK(json["exit_code"] == 3);
  CHECK(json["poisoned"] == true);
  CHECK(json["committed_version"].is_null());
  CHECK(json["versions"][0]["committed"] == false);
  CHECK(json["error"] == Json{{"code", 3},
                              {"rank", 1},
                              {"host", "alpha"},
                              {"gpu", "0"},
                              {"role", "inference"},
                              {"phase", "verify"},
                              {"tag", "weights"},
                              {"tensor", "a"},
                              {"message", "tensor \"a\" differs"},
                              {"hint", "look at its shard"}});
}

TEST_CASE("what is unknown is null, never zero or empty text") {
  Report report;
  report.command = "transfer";
  report.error = request_error("no such model");
  const auto json = rendered(report);
  for (const char* key :
       {"backend", "started_at", "model", "trainer", "inference", "plan", "committed_version"}) {
    CAPTURE(key);
    CHECK(json.at(key).is_null());
  }
  for (const char* key : {"ranks", "gpus", "nodes"}) CHECK(json["world"].at(key).is_null());
  CHECK(json["memory"]["device_peak_bytes"].is_null());
  CHECK(json["memory"]["leaked_bytes"].is_null());
  CHECK(json["versions"] == Json::array());
  for (const char* key : {"rank", "host", "gpu", "role", "phase", "tag", "tensor", "hint"}) {
    CAPTURE(key);
    CHECK(json["error"].at(key).is_null());
  }
  CHECK(json["error"]["code"] == 2);
}

TEST_CASE("a job that has not finished says so") {
  Report report;
  report.command = "update";
  const auto json = rendered(report);
  CHECK(json["ok"] == false);
  CHECK(json["exit_code"] == 1);
  CHECK(json["error"]["code"] == 1);
  CHECK(json["error"]["message"] == "the job has not finished");
}

TEST_CASE("strange numbers and bytes still give JSON") {
  auto report = test::sample_report();
  report.model_name = "caf\xe9";
  report.versions[0].seconds = std::numeric_limits<double>::quiet_NaN();
  report.versions[0].digest->model = 0xffffffffffffffffU;
  const auto json = rendered(report);
  CHECK(json["versions"][0]["seconds"].is_null());
  CHECK(json["versions"][0]["digest"]["model"] == "0xffffffffffffffff");
  report.versions[0].digest->model = 0;
  CHECK(rendered(report)["versions"][0]["digest"]["model"] == "0x0000000000000000");
}

}  // namespace
}  // namespace awex
