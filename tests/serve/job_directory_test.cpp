#include "serve/job_directory.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "base/node_identity.hpp"
#include "support/temporary_directory.hpp"

namespace {

using namespace awex;
using test::TemporaryDirectory;
namespace fs = std::filesystem;

unsigned mode_of(const fs::path& path) {
  struct stat status {};
  REQUIRE(::lstat(path.c_str(), &status) == 0);
  return status.st_mode & 07777U;
}

std::string content_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

/// What `work` is refused for; it must be a request error.
std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    CHECK(!error.hint().empty());
    return error.what();
  }
  return "nothing";
}

std::string refused_start(const std::string& path) {
  return refusal([&] { const JobDirectory job(path); });
}

/// A process whose job ends without a word, as one that is killed; it is to be waited for.
pid_t begin_killed_job(const std::string& path) {
  const auto child = ::fork();
  if (child == 0) {
    const JobDirectory job(path);
    ::kill(::getpid(), SIGKILL);
  }
  return child;
}

/// A job that has ended so. Returns its private directory.
std::string killed_job(const std::string& path) {
  const auto child = begin_killed_job(path);
  int status = 0;
  ::waitpid(child, &status, 0);
  REQUIRE(WIFSIGNALED(status));
  const auto record = read_job_record(path);
  REQUIRE(record);
  return fs::path(record->socket).parent_path().string();
}

/// A record as another program could write it.
std::string record_text(const std::string& host, const std::string& boot, const std::string& socket,
                        const std::string& end) {
  return "{\"schema_version\": 1, \"host\": \"" + host + "\", \"boot_id\": \"" + boot +
         "\", \"pid\": 4711, \"socket\": \"" + socket +
         "\", \"build\": \"1\", \"started_at\": \"2026-11-27T10:00:00Z\", " + end + "}";
}

const std::string kNoEnd = R"("ended_at": null, "end": null)";

std::string this_host() { return read_node_identity().name(); }
std::string this_boot() { return text_of(read_node_identity().boot); }

/// The environment's XDG_RUNTIME_DIR, for a while.
class RuntimeDirectory {
 public:
  explicit RuntimeDirectory(const std::string& path) {
    if (const char* named = std::getenv("XDG_RUNTIME_DIR")) before_ = named;
    ::setenv("XDG_RUNTIME_DIR", path.c_str(), 1);
  }
  RuntimeDirectory(const RuntimeDirectory&) = delete;
  RuntimeDirectory& operator=(const RuntimeDirectory&) = delete;
  RuntimeDirectory(RuntimeDirectory&&) = delete;
  RuntimeDirectory& operator=(RuntimeDirectory&&) = delete;
  ~RuntimeDirectory() {
    if (before_) {
      ::setenv("XDG_RUNTIME_DIR", before_->c_str(), 1);
    } else {
      ::unsetenv("XDG_RUNTIME_DIR");
    }
  }

 private:
  std::optional<std::string> before_;
};

TEST_CASE("a job's directory names the job, and its private directory is its own") {
  const TemporaryDirectory root;
  const auto path = (root.path() / "new" / "job").string();
  CHECK_FALSE(read_job_record(path));
  std::string private_directory;
  {
    const JobDirectory job(path);
    private_directory = job.private_directory();
    CHECK_FALSE(job.former());
    CHECK(mode_of(private_directory) == 0700);
    CHECK(job.record().socket.rfind(private_directory + "/", 0) == 0);
    CHECK(job.record().socket.size() <= 107);
    const auto record = read_job_record(path);
    REQUIRE(record);
    CHECK(record->host == this_host());
    CHECK(record->boot_id == this_boot());
    CHECK(record->pid == ::getpid());
    CHECK(record->socket == job.record().socket);
    CHECK(record->ended_at.empty());
    CHECK(is_of_this_host(*record));
    CHECK(job_lives(*record));
  }
  CHECK_FALSE(fs::exists(private_directory));
  const auto record = read_job_record(path);
  REQUIRE(record);
  CHECK_FALSE(job_lives(*record));
  // Nothing else has been left in it.
  CHECK(std::distance(fs::directory_iterator(path), fs::directory_iterator{}) == 1);
}

TEST_CASE("a living job's directory is refused to a second job, which changes nothing") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  const JobDirectory job(path);
  const auto before = content_of(root.path() / "job.json");
  const auto words = refused_start(path);
  CHECK(words.find("a job of pid " + std::to_string(::getpid())) != std::string::npos);
  CHECK(words.find("already") != std::string::npos);
  CHECK(content_of(root.path() / "job.json") == before);
  CHECK(fs::exists(job.private_directory()));
}

TEST_CASE("a new job tells how the one before ended") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  const auto former = [&] {
    const JobDirectory job(path);
    REQUIRE(job.former());
    auto words = describe(*job.former());
    CHECK(words.rfind("a job of pid ", 0) == 0);
    return words;
  };
  {
    JobDirectory job(path);
    job.write_end("stopped by a client");
    CHECK_FALSE(fs::exists(job.private_directory()));
    const auto record = read_job_record(path);
    REQUIRE(record);
    CHECK_FALSE(record->ended_at.empty());
    CHECK(record->end == "stopped by a client");
  }
  CHECK(former().find(": stopped by a client") != std::string::npos);
  CHECK(former().find(", that ended without a word") != std::string::npos);
  { JobDirectory(path).write_end("rank 3 \"x\" is gone\n\xff"); }
  CHECK(former().find(": rank 3 \"x\" is gone\n\xef\xbf\xbd") != std::string::npos);
}

TEST_CASE("what a killed job has left is removed by the next one") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  const auto left = killed_job(path);
  CHECK(fs::exists(left));
  test::write_file(fs::path(left) / "socket", "");
  const JobDirectory job(path);
  REQUIRE(job.former());
  CHECK(describe(*job.former()).find("without a word") != std::string::npos);
  CHECK_FALSE(fs::exists(left));
}

TEST_CASE(
    "a new job removes what killed ones have left elsewhere, and nothing of those that live") {
  const TemporaryDirectory root;
  const auto lives = (root.path() / "lives").string();
  const JobDirectory living(lives);
  const auto left = killed_job((root.path() / "killed").string());
  test::write_file(fs::path(left) / "socket", "");
  CHECK(fs::exists(left));
  const JobDirectory job((root.path() / "job").string());
  CHECK_FALSE(fs::exists(left));
  CHECK(fs::exists(living.private_directory()));
  CHECK(fs::exists(job.private_directory()));
}

TEST_CASE("a record's words make a new job remove nothing but a private directory") {
  const TemporaryDirectory root;
  const auto path = (root.path() / "job").string();
  fs::create_directory(path);
  const auto other = root.path() / "awex-colocate-other";
  fs::create_directory(other);
  test::write_file(other / "socket", "data");
  test::write_file(other / "more", "data");
  const auto link = root.path() / "awex-colocate-link";
  const auto important = root.path() / "important";
  fs::create_directory(important);
  test::write_file(important / "socket", "data");
  fs::create_directory_symlink(important, link);
  for (const auto& named : {link, important}) {
    test::write_file(path + "/job.json",
                     record_text(this_host(), "another", (named / "socket").string(), kNoEnd));
    const JobDirectory job(path);
    CHECK(job.former());
    CHECK(fs::exists(named / "socket"));
  }
  test::write_file(path + "/job.json",
                   record_text(this_host(), "another", (other / "socket").string(), kNoEnd));
  { const JobDirectory job(path); }
  CHECK(fs::exists(other / "more"));
}

TEST_CASE("names may be long, and relative") {
  const TemporaryDirectory root;
  const auto name = std::string(150, 'd') + "/" + std::string(150, 'e');
  const auto before = fs::current_path();
  fs::current_path(root.path());
  {
    JobDirectory job(name);
    CHECK(job.record().socket.size() <= 107);
    // It is where it was, also when the process goes elsewhere.
    fs::current_path("/");
    job.write_end("done");
  }
  fs::current_path(before);
  const auto record = read_job_record((root.path() / name).string());
  REQUIRE(record);
  CHECK(record->end == "done");
}

TEST_CASE("a job on another host is not replaced unless it has said that it ended") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  const auto file = root.path() / "job.json";
  test::write_file(file, record_text("elsewhere", "b", "/tmp/awex-colocate-x/socket", kNoEnd));
  const auto words = refused_start(path);
  CHECK(words.find("on host elsewhere") != std::string::npos);
  CHECK(words.find("has not said that it ended") != std::string::npos);
  test::write_file(file, record_text("elsewhere", "b", "/tmp/awex-colocate-x/socket",
                                     R"("ended_at": "2026-11-27T11:00:00Z", "end": "stopped")"));
  const JobDirectory job(path);
  REQUIRE(job.former());
  CHECK(describe(*job.former()) ==
        "a job of pid 4711 on host elsewhere, begun 2026-11-27T10:00:00Z, that ended "
        "2026-11-27T11:00:00Z: stopped");
}

TEST_CASE("a job from before this host's last start is dead") {
  const TemporaryDirectory root;
  test::write_file(root.path() / "job.json",
                   record_text(this_host(), "another", "/tmp/awex-colocate-x/socket", kNoEnd));
  const JobDirectory job(root.path().string());
  CHECK(job.former());
}

TEST_CASE("a job in a /tmp that is not this one lives as long as its process") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  const auto child = ::fork();
  if (child == 0) {
    const JobDirectory job(path);
    while (true) ::pause();
  }
  while (!fs::exists(root.path() / "job.json")) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  auto record = read_job_record(path);
  REQUIRE(record);
  fs::remove_all(fs::path(record->socket).parent_path());
  CHECK(job_lives(*record));
  CHECK(refused_start(path).find("already") != std::string::npos);
  // A process that began after the job has only got its number.
  record->started_at = "2001-01-01T00:00:00Z";
  CHECK_FALSE(job_lives(*record));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  const JobDirectory next(path);
  CHECK(next.former());
}

TEST_CASE("a job that has ended lives no longer because nobody has waited for its process") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  const auto child = begin_killed_job(path);
  siginfo_t info{};
  REQUIRE(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0);
  const auto record = read_job_record(path);
  REQUIRE(record);
  fs::remove_all(fs::path(record->socket).parent_path());  // as a rank that survives does
  CHECK_FALSE(job_lives(*record));
  CHECK(end_of_job(*record, path));
  {
    const JobDirectory next(path);
    CHECK(next.former());
  }
  ::waitpid(child, nullptr, 0);
}

TEST_CASE("the private directory is in XDG_RUNTIME_DIR where that is this user's alone") {
  const TemporaryDirectory root;
  const auto job_path = (root.path() / "job").string();
  const auto base_of = [&](const std::string& named) {
    const RuntimeDirectory runtime(named);
    const JobDirectory job(job_path);
    return fs::path(job.private_directory()).parent_path().string();
  };
  const auto own = (root.path() / "run").string();
  fs::create_directory(own);
  fs::permissions(own, fs::perms::owner_all);
  CHECK(base_of(own) == own);
  CHECK(base_of(own + "//") == own);
  CHECK(base_of("") == "/tmp");
  CHECK(base_of("run") == "/tmp");
  CHECK(base_of((root.path() / "none").string()) == "/tmp");
  const auto long_one = own + "/" + std::string(80, 'x');
  fs::create_directory(long_one);
  CHECK(base_of(long_one) == "/tmp");
  test::write_file(own + "/file", "");
  CHECK(base_of(own + "/file") == "/tmp");
  fs::permissions(own, fs::perms::owner_all | fs::perms::group_write);
  CHECK(base_of(own) == "/tmp");
  if (::geteuid() == 0) {
    fs::permissions(own, fs::perms::owner_all);
    REQUIRE(::chown(own.c_str(), 65534, 65534) == 0);
    CHECK(base_of(own) == "/tmp");
  }
}

TEST_CASE("records that are none are refused, and stay as they are") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  const auto file = root.path() / "job.json";
  const auto good = record_text(this_host(), "b", "/tmp/awex-colocate-x/socket", kNoEnd);
  const std::vector<std::string> texts{"",
                                       "no JSON",
                                       "[]",
                                       "{}",
                                       std::string(100'000, ' ') + good,
                                       good + std::string(1, '\0'),
                                       "{\"schema_version\": 2}",
                                       "{\"schema_version\": 1, \"pid\": 0}",
                                       "{\"schema_version\": 1, \"pid\": 99999999999}",
                                       "{\"schema_version\": 1, \"pid\": 7, \"host\": 7}"};
  for (const auto& text : texts) {
    CAPTURE(text.substr(0, 80));
    test::write_file(file, text);
    CHECK(refused_start(path).find("no job has written this") != std::string::npos);
    CHECK(refusal([&] { (void)read_job_record(path); }) != "nothing");
    CHECK(content_of(file) == text);
  }
  fs::remove(file);
  REQUIRE(::mkfifo(file.c_str(), 0600) == 0);
  CHECK(refused_start(path).find("no plain file") != std::string::npos);
  fs::remove(file);
  test::write_file(root.path() / "other", good);
  fs::create_symlink("other", file);
  CHECK(refused_start(path) != "nothing");
  fs::remove(file);
  fs::create_directory(file);
  CHECK(refused_start(path) != "nothing");
}

TEST_CASE("a directory that cannot be is refused") {
  const TemporaryDirectory root;
  test::write_file(root.path() / "file", "");
  CHECK(refused_start("") != "nothing");
  CHECK(refused_start((root.path() / "file").string()) != "nothing");
  CHECK(refused_start((root.path() / "file" / "job").string()) != "nothing");
  CHECK(refusal([&] { (void)read_job_record((root.path() / "file").string()); }) != "nothing");
}

TEST_CASE("of jobs that begin at one moment only one gets the directory") {
  const TemporaryDirectory root;
  for (int round = 0; round < 20; ++round) {
    const auto path = (root.path() / std::to_string(round)).string();
    if (round % 2 == 1) killed_job(path);
    std::atomic<int> begun{0};
    std::atomic<int> ready{0};
    std::vector<std::thread> threads;
    std::atomic<int> tried{0};
    constexpr int kJobs = 6;
    for (int i = 0; i < kJobs; ++i) {
      threads.emplace_back([&] {
        ++ready;
        while (ready < kJobs) std::this_thread::yield();
        std::optional<JobDirectory> job;
        try {
          job.emplace(path);
          ++begun;
        } catch (const Error&) {
        }
        ++tried;
        while (tried < kJobs) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      });
    }
    for (auto& thread : threads) thread.join();
    CHECK(begun == 1);
  }
}

TEST_CASE("whoever reads the record while it changes reads a whole one") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  { const JobDirectory first(path); }
  std::atomic<bool> over{false};
  int read = 0;
  int wrong = 0;
  std::thread reader([&] {
    while (!over) {
      try {
        ++(read_job_record(path) ? read : wrong);
      } catch (const Error&) {
        ++wrong;
      }
    }
  });
  for (int i = 0; i < 50; ++i) {
    JobDirectory job(path);
    job.write_end(std::string(static_cast<size_t>(i) * 100, 'x'));
  }
  over = true;
  reader.join();
  CHECK(read > 0);
  CHECK(wrong == 0);
}

TEST_CASE("a lost rank 0 is buried by another rank, a later job is not") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  const auto left = killed_job(path);
  bury_job(path, left, "rank 0 is gone");
  CHECK_FALSE(fs::exists(left));
  auto record = read_job_record(path);
  REQUIRE(record);
  CHECK(record->end == "rank 0 is gone");
  CHECK_FALSE(record->ended_at.empty());

  const JobDirectory next(path);
  bury_job(path, left, "rank 0 is gone once more");
  record = read_job_record(path);
  REQUIRE(record);
  CHECK(record->end.empty());
  CHECK(fs::exists(next.private_directory()));
  // Whatever is wrong, it does not throw.
  bury_job("/proc/none", "/proc", "x");
  bury_job("", "", "x");
}

TEST_CASE("a job's last words are heard, also when its record was read before it wrote them") {
  const TemporaryDirectory directory;
  const auto path = (directory.path() / "job").string();
  std::optional<JobRecord> early;
  {
    JobDirectory job(path);
    early = read_job_record(path);
    REQUIRE(early);
    CHECK(!end_of_job(*early, path));
    job.write_end("stopped by a client", ExitCode::kOk);
  }
  const auto end = end_of_job(*early, path);
  REQUIRE(end);
  CHECK(end->end == "stopped by a client");
  CHECK(end->exit_code == ExitCode::kOk);
  CHECK(end_of_job(*end, path)->end == "stopped by a client");

  const JobDirectory next(path);
  CHECK(!read_again(*early, path));
  REQUIRE(end_of_job(*early, path));
  CHECK(end_of_job(*early, path)->ended_at.empty());  // not what the next one will say
}

TEST_CASE("of a job on another host only its own word counts") {
  const TemporaryDirectory directory;
  const auto path = (directory.path() / "job").string();
  fs::create_directory(path);
  const auto write = [&](const std::string& end) {
    std::ofstream(fs::path(path) / "job.json")
        << record_text("elsewhere", "other-boot", "/none/socket", end);
  };
  write("\"ended_at\": null, \"end\": null, \"exit_code\": null");
  CHECK(!end_of_job(*read_job_record(path), path));
  write("\"ended_at\": \"2026-11-27T11:00:00Z\", \"end\": \"rank 3 was lost\", \"exit_code\": 5");
  CHECK(end_of_job(*read_job_record(path), path)->end == "rank 3 was lost");
}

TEST_CASE("a job that was replaced does not write its end over the next one's record") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  JobDirectory first(path);
  fs::remove(root.path() / "job.json");  // as the message about a dead host says
  const JobDirectory second(path);
  first.write_end("late");
  const auto record = read_job_record(path);
  REQUIRE(record);
  CHECK(record->end.empty());
  CHECK(record->socket == second.record().socket);
}

}  // namespace
