#include "cli/report_files.hpp"

#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
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

TEST_CASE("a report is replaced as a whole, through a link, and leaves nothing beside it") {
  const test::TemporaryDirectory directory;
  const auto path = directory.path() / "report.json";
  const auto link = directory.path() / "link.json";
  std::ofstream(path) << "old";
  std::filesystem::create_symlink("report.json", link);
  ReportFiles files;
  files.open(link, "", Report{});
  std::ifstream before(path);  // whoever has opened it sees one whole report
  files.update(test::sample_report());
  CHECK(nlohmann::json::parse(before)["error"]["message"] == "the job has not finished");
  CHECK(json_in(path)["ok"] == true);
  CHECK(std::filesystem::is_symlink(link));
  const std::filesystem::directory_iterator all(directory.path());
  CHECK(std::distance(begin(all), end(all)) == 2);
}

TEST_CASE("a FIFO takes one report, the last, in place; a file has every one") {
  const test::TemporaryDirectory directory;
  const auto fifo = directory.path() / "fifo";
  const auto file = directory.path() / "report.json";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  const UniqueFd reader(::open(fifo.c_str(), O_RDONLY | O_NONBLOCK));
  ReportFiles files;
  files.open(fifo, "", Report{});
  files.open(file, "", Report{});
  files.update(test::sample_report());
  std::array<char, 1 << 16> bytes{};
  CHECK(::read(reader.get(), bytes.data(), bytes.size()) == -1);  // EAGAIN: nothing yet
  CHECK(json_in(file)["ok"] == true);
  struct stat before {};
  REQUIRE(::stat(file.c_str(), &before) == 0);
  const std::ifstream kept(file);  // so that its inode's number is not given again
  auto failed = test::sample_report();
  failed.error = test::sample_error();
  files.write(failed);
  const auto got = ::read(reader.get(), bytes.data(), bytes.size());
  REQUIRE(got > 0);
  const std::string text(bytes.data(), static_cast<size_t>(got));
  CHECK(nlohmann::json::parse(text) == json_in(file));  // one object, or it would not parse
  CHECK(json_in(file)["error"]["code"] == 3);
  struct stat after {};
  REQUIRE(::stat(file.c_str(), &after) == 0);
  CHECK(before.st_ino != after.st_ino);  // another file has taken its place
  REQUIRE(::stat(fifo.c_str(), &after) == 0);
  CHECK(S_ISFIFO(after.st_mode));
}

TEST_CASE(
    "where no file can be made beside the report, it is written in place and cut to its end") {
  const test::TemporaryDirectory directory;
  const auto path = directory.path() / "report.json";
  std::ofstream(path) << std::string(1 << 20, 'x');
  struct stat before {};
  REQUIRE(::stat(path.c_str(), &before) == 0);
  // A directory with the name of the file that would take its place; root may write anywhere.
  const auto beside = fmt::format("{}.{}.tmp", path.string(), ::getpid());
  std::filesystem::create_directory(beside);
  ReportFiles files;
  files.open(path, "", Report{});
  CHECK(json_in(path)["error"]["message"] == "the job has not finished");
  files.write(test::sample_report());
  CHECK(json_in(path)["ok"] == true);
  struct stat after {};
  REQUIRE(::stat(path.c_str(), &after) == 0);
  CHECK(before.st_ino == after.st_ino);
}

TEST_CASE("this process's own stdout is \"-\" by whatever name") {
  for (const char* name : {"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}) {
    CHECK(report_path(name) == "-");
  }
  CHECK(report_path("stdout") == "stdout");
  CHECK(report_path("").empty());
}

TEST_CASE("a FIFO that nobody reads ends by the deadline") {
  const test::TemporaryDirectory directory;
  const auto path = directory.path() / "fifo";
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  ReportFiles files;
  try {
    files.open(path, "", Report{}, {Seconds(0.1), {}});
    FAIL("it opened");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kDeadline);
  }
}

TEST_CASE("a reader that stops reading ends by the deadline") {
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  try {
    write_all(writer.get(), std::string(1 << 20, 'x'), "a pipe", {Seconds(0.1), {}});
    FAIL("it was written");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kDeadline);
  }
}

TEST_CASE("\"-\" and no path open nothing") {
  ReportFiles files;
  files.open("-", "", Report{});
  CHECK_NOTHROW(files.write(Report{}));
  CHECK(!std::filesystem::exists("-"));
}

}  // namespace
}  // namespace awex
