#include "cli/render_trace.hpp"

#include <doctest/doctest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>

#include "cli/sample_report.hpp"

namespace awex {
namespace {

using Json = nlohmann::json;

Json trace_of(const Report& report) { return Json::parse(render_trace(report)); }

TEST_CASE("every event has what the trace event format asks for") {
  const auto trace = trace_of(test::sample_report());
  REQUIRE(trace["traceEvents"].is_array());
  REQUIRE(!trace["traceEvents"].empty());
  for (const auto& event : trace["traceEvents"]) {
    CAPTURE(event.dump());
    CHECK(event["name"].is_string());
    CHECK(event["pid"].is_number_integer());
    CHECK(event["tid"].is_number_integer());
    if (event["ph"] == "X") {
      CHECK(event["ts"].get<double>() >= 0);
      CHECK(event["dur"].get<double>() >= 0);
    } else {
      CHECK(event["ph"] == "M");
      CHECK(event["args"].is_object());
    }
  }
}

TEST_CASE("a rank's phase is an event in microseconds on the thread of its tag") {
  std::map<std::pair<int, int>, std::string> threads;
  std::map<int, std::string> processes;
  std::set<std::string> found;
  const auto trace = trace_of(test::sample_report());
  for (const auto& event : trace["traceEvents"]) {
    if (event["name"] == "process_name") processes[event["pid"]] = event["args"]["name"];
    if (event["name"] == "thread_name") {
      threads[{event["pid"], event["tid"]}] = event["args"]["name"];
    }
  }
  CHECK(processes.at(0) == "rank 0 trainer (alpha, gpu 0 NVIDIA H100)");
  CHECK(processes.at(1) == "rank 1 inference (alpha, gpu 0 NVIDIA H100)");
  int events = 0;
  for (const auto& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    ++events;
    const auto& thread = threads.at({event["pid"], event["tid"]});
    found.insert(event["name"].get<std::string>() + " on " + thread);
    if (event["name"] == "transfer weights" && event["pid"] == 1) {
      CHECK(event["ts"] == 1.25e6);
      CHECK(event["dur"] == 0.25e6);
      CHECK(event["cat"] == "all");
      CHECK(event["args"]["bytes"] == 8'000'000'000);
      CHECK(event["args"]["version"] == 1);
      CHECK(event["args"]["bytes_per_s"] == 32e9);
    }
  }
  CHECK(events == 5);
  CHECK(found == std::set<std::string>{"offload optimizer on optimizer",
                                       "transfer weights on weights", "commit on cycle"});
}

TEST_CASE("a trace without phases is a trace, and says that the job has not finished") {
  const auto trace = trace_of(Report{});
  CHECK(trace["traceEvents"] == Json::array());
  CHECK(trace["otherData"]["finished"] == false);
}

}  // namespace
}  // namespace awex
