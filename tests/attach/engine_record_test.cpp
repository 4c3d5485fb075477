#include "attach/engine_record.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "base/private_directory.hpp"
#include "support/failure_of.hpp"
#include "support/temporary_directory.hpp"

namespace {

using namespace awex;
using namespace awex::attach;
namespace fs = std::filesystem;

EngineRecord some_record() {
  EngineRecord record;
  record.job = "/run/user/7/awex-colocate-job";
  record.host = "node7";
  record.boot_id = "d3b0";
  record.pid_namespace = 4026531836;
  record.rank = 3;
  record.pid = 4711;
  record.role = Role::kInference;
  record.device = 1;
  for (size_t i = 0; i < record.uuid.size(); ++i) record.uuid.at(i) = static_cast<uint8_t>(17 * i);
  record.backend = "cuda";
  record.socket = "/run/user/7/awex-colocate-abc/engine";
  return record;
}

std::string text_in(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST_CASE("a record is read as it was written, until it is removed") {
  const test::TemporaryDirectory job;
  const auto path = job.path().string();
  CHECK(read_engine_records(path).empty());
  CHECK(read_engine_records(path + "/nowhere").empty());
  auto record = some_record();
  write_engine_record(path, record);
  CHECK(fs::exists(job.path() / "engines" / "node7-inference-1.json"));
  auto other = record;
  other.role = Role::kTrainer;
  other.socket = "/tmp/other";
  write_engine_record(path, other);
  record.pid = 4712;
  record.awaits = "an engine to attach";
  write_engine_record(path, record);
  const auto records = read_engine_records(path);
  REQUIRE(records.size() == 2);
  const auto& got = records[0];
  CHECK(got.job == "/run/user/7/awex-colocate-job");
  CHECK(got.host == "node7");
  CHECK(got.boot_id == "d3b0");
  CHECK(got.pid_namespace == 4026531836);
  CHECK(got.rank == 3);
  CHECK(got.pid == 4712);
  CHECK(got.role == Role::kInference);
  CHECK(got.device == 1);
  CHECK(got.uuid == record.uuid);
  CHECK(got.backend == "cuda");
  CHECK(got.socket == record.socket);
  CHECK(got.awaits == "an engine to attach");
  CHECK(records[1].awaits.empty());
  CHECK(records[1].role == Role::kTrainer);

  auto former = record;
  former.socket = "/tmp/former";
  remove_engine_record(path, former);
  CHECK(read_engine_records(path).size() == 2);
  remove_engine_record(path, record);
  remove_engine_record(path, other);
  remove_engine_record(path, other);
  CHECK(read_engine_records(path).empty());
  CHECK(fs::is_empty(job.path() / "engines"));
}

TEST_CASE("what ranks have left that were killed is removed, and nothing else") {
  const test::TemporaryDirectory job;
  const auto path = job.path().string();
  // Elsewhere others tidy up.
  const char* usual = std::getenv("XDG_RUNTIME_DIR");
  const std::string before = usual == nullptr ? "" : usual;
  ::setenv("XDG_RUNTIME_DIR", path.c_str(), 1);
  struct Door {
    EngineRecord record;
    PrivateDirectory own = make_private_directory();
  };
  std::array<Door, 4> doors;
  for (size_t i = 0; i < doors.size(); ++i) {
    doors[i].record = some_record();
    doors[i].record.rank = doors[i].record.device = static_cast<int>(i);
    doors[i].record.socket = private_socket_path(doors[i].own.path);
    if (i == 3) doors[i].record.boot_id = "another machine, maybe";
    test::write_file(doors[i].record.socket, "");
    name_private_directory(doors[i].own.path, path);
    write_engine_record(path, doors[i].record);
  }
  const auto is_there = [&](size_t door) { return fs::exists(doors[door].own.path); };
  doors[0].own.lock.reset();
  doors[3].own.lock.reset();
  bury_engine_records(path, some_record());
  CHECK(read_engine_records(path).size() == 3);
  CHECK_FALSE(is_there(0));
  CHECK(is_there(1));
  bury_engine_records(path, some_record(),
                      [](const EngineRecord& record) { return record.rank == 1; });
  CHECK(read_engine_records(path).size() == 2);
  CHECK_FALSE(is_there(1));
  CHECK(is_there(2));
  CHECK(is_there(3));  // of a kernel that we know nothing of
  const auto targets = private_directory_targets();
  CHECK(std::count(targets.begin(), targets.end(), path) == 1);
  for (const auto& door : doors) remove_private_directory(door.own.path);
  const auto none = private_directory_targets();
  CHECK(std::count(none.begin(), none.end(), path) == 0);
  ::setenv("XDG_RUNTIME_DIR", before.c_str(), 1);
}

TEST_CASE("a host's name stays within the folder") {
  const test::TemporaryDirectory job;
  auto record = some_record();
  record.host = "../../x";
  write_engine_record(job.path().string(), record);
  CHECK(read_engine_records(job.path().string()).at(0).host == "../../x");
}

TEST_CASE("a record that is half written does not count") {
  const test::TemporaryDirectory job;
  write_engine_record(job.path().string(), some_record());
  test::write_file(job.path() / "engines" / "node7-inference-1.json.x2Yz90", "{");
  CHECK(read_engine_records(job.path().string()).size() == 1);
}

TEST_CASE("what no rank has written is refused by name") {
  const test::TemporaryDirectory job;
  write_engine_record(job.path().string(), some_record());
  const auto path = job.path() / "engines" / "node7-inference-1.json";
  const auto good = text_in(path);
  const auto refuse = [&](const std::string& why) {
    const auto failure =
        test::failure_of([&] { static_cast<void>(read_engine_records(job.path().string())); });
    REQUIRE(failure);
    CAPTURE(failure->what());
    CHECK(failure->code() == ExitCode::kRequest);
    CHECK(std::string(failure->what()).find(path.string()) != std::string::npos);
    CHECK(std::string(failure->what()).find(why) != std::string::npos);
  };
  const auto changed = [&](const std::string& part, const std::string& by) {
    auto text = good;
    const auto at = text.find(part);
    REQUIRE(at != std::string::npos);
    test::write_file(path, text.replace(at, part.size(), by));
  };
  test::write_file(path, "");
  refuse("not valid JSON");
  test::write_file(path, std::string(70000, ' '));
  refuse("too long");
  changed("\"schema_version\": 1", "\"schema_version\": 2");
  refuse("\"schema_version\" is 2");
  changed("00112233", "0011223");
  refuse("not 32 hex digits");
  changed("00112233", "0011223g");
  refuse("not 32 hex digits");
  changed("\"inference\"", "\"teacher\"");
  refuse("\"role\" is \"teacher\"");
  changed("\"pid\": 4711", "\"pid\": 0");
  refuse("not a process");
  changed("\"rank\": 3", "\"rank\": 4294967296");
  refuse("\"rank\"");
  fs::remove(path);
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  refuse("no plain file");
  fs::remove(path);
  fs::create_symlink("/etc/passwd", path);
  refuse("cannot read the record");
}

TEST_CASE("a record that cannot be written is an error that names it") {
  const test::TemporaryDirectory job;
  test::write_file(job.path() / "engines", "");
  const auto failure =
      test::failure_of([&] { write_engine_record(job.path().string(), some_record()); });
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kRequest);
  CHECK(std::string(failure->what()).find("engines") != std::string::npos);
}

}  // namespace
