#include "cli/report_files.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/sample_report.hpp"
#include "support/temporary_directory.hpp"

namespace awex {
namespace {

nlohmann::json json_in(const std::filesystem::path& file) {
  std::ifstream stream(file);
  return nlohmann::json::parse(stream);
}

TEST_CASE("from the start the files tell that the job has not finished, at the end what it did") {
  const test::TemporaryDirectory directory;
  const auto json_path = directory.path() / "report.json";
  const auto trace_path = directory.path() / "trace.json";
  // Longer than what replaces it: nothing of the old content may stay.
  std::ofstream(json_path) << std::string(1 << 20, 'x');
  ReportFiles files;
  Report unfinished;
  unfinished.command = "update";
  files.open(json_path, trace_path, unfinished);
  CHECK(json_in(json_path)["ok"] == false);
  CHECK(json_in(json_path)["error"]["message"] == "the job has not finished");
  CHECK(json_in(trace_path)["otherData"]["finished"] == false);

  files.write(test::sample_report());
  CHECK(json_in(json_path)["ok"] == true);
  CHECK(json_in(json_path)["error"].is_null());
  CHECK(json_in(trace_path)["otherData"]["finished"] == true);
  CHECK(!json_in(trace_path)["traceEvents"].empty());

  auto failed = test::sample_report();
  failed.error = test::sample_error();
  failed.versions.clear();
  files.write(failed);
  CHECK(json_in(json_path)["error"]["code"] == 3);
}

TEST_CASE("a path that cannot be written is a wrong request that names it") {
  const test::TemporaryDirectory directory;
  const auto path = directory.path() / "missing" / "report.json";
  ReportFiles files;
  try {
    files.open(path, "", Report{});
    FAIL("it opened");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    CHECK(std::string(error.what()).find(path.string()) != std::string::npos);
  }
}

TEST_CASE("a full disk is a failure, not silence") {
  ReportFiles files;
  files.open("/dev/full", "", Report{});
  CHECK_THROWS_WITH_AS(files.write(Report{}), doctest::Contains("/dev/full"), Error);
}

TEST_CASE("\"-\" and no path open nothing") {
  ReportFiles files;
  files.open("-", "", Report{});
  CHECK_NOTHROW(files.write(Report{}));
  CHECK(!std::filesystem::exists("-"));
}

}  // namespace
}  // namespace awex
