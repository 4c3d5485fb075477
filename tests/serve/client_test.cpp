// What a command hears that asks a job, whatever has become of the job.
#include "serve/client.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <optional>
#include <string>
#include <thread>

#include "serve/house.hpp"
#include "support/failure_of.hpp"

namespace {

using namespace awex;
using namespace awex::test;

std::optional<Error> failed_ask(const std::string& path, Seconds patience = Seconds(0)) {
  return failure_of([&] { (void)ask(path, ClientRequest{}, nullptr, patience); });
}

TEST_CASE("where no job serves, a client says what is there") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  auto failure = failed_ask(path, Seconds(0.05));
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kRequest);
  CHECK(std::string(failure->what()) == "no job serves at \"" + path + "\", and none ever has");
  failure = failed_ask(path + "/none");
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kRequest);

  { JobDirectory(path).write_end("stopped by a client"); }
  failure = failed_ask(path);
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kRequest);
  CHECK(std::string(failure->what()).find("stopped by a client") != std::string::npos);

  { const JobDirectory job(path); }
  failure = failed_ask(path);
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kRequest);
  CHECK(std::string(failure->what()).find("ended without a word") != std::string::npos);
}

TEST_CASE("on another host a client is told where the job is") {
  const TemporaryDirectory root;
  write_file(root.path() / "job.json",
             R"({"schema_version": 1, "host": "elsewhere", "boot_id": "b", "pid": 7,
                 "socket": "/tmp/awex-colocate-x/socket", "started_at": "2026-11-27T10:00:00Z"})");
  const auto failure = failed_ask(root.path().string(), Seconds(60));
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kRequest);
  CHECK(std::string(failure->what()).find("serves on host elsewhere") != std::string::npos);
  CHECK(failure->hint().find("ssh elsewhere") != std::string::npos);
}

TEST_CASE("a client waits for a job that begins") {
  const TemporaryDirectory root;
  const auto path = (root.path() / "job").string();
  auto answer = ask_beside(path, ClientRequest{}, nullptr, Seconds(20));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  JobDirectory directory(path);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  StatusBoard board;
  const Doorman doorman(directory, board);
  CHECK(answer.get().exit_code == ExitCode::kOk);
}

TEST_CASE("a job that does not open its door is told apart from one that is not there") {
  const TemporaryDirectory root;
  const JobDirectory job(root.path().string());
  const auto failure = failed_ask(root.path().string());
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kRequest);
  CHECK(std::string(failure->what()).find("lives, but cannot be reached") != std::string::npos);
}

TEST_CASE("a job that ends without an answer is lost, and its record says why") {
  const TemporaryDirectory root;
  const auto path = (root.path() / "job").string();
  for (const bool has_last_words : {true, false}) {
    std::optional<Error> failure;
    std::thread client;
    {
      JobDirectory directory(path);
      StatusBoard board;
      Doorman doorman(directory, board);
      client =
          std::thread([&] { failure = failure_of([&] { (void)ask(path, update_request()); }); });
      CHECK(doorman.next(Seconds(10)));
      if (has_last_words) directory.write_end("rank 1 (inference) is gone");
    }
    client.join();
    REQUIRE(failure);
    CHECK(failure->code() == ExitCode::kPeerLost);
    const std::string words = failure->what();
    CHECK(words.find("ended without an answer") != std::string::npos);
    CHECK(words.find(has_last_words ? ": rank 1 (inference) is gone" : "without a word") !=
          std::string::npos);
  }
}

TEST_CASE("a job has ended when it says so, though its process lives on") {
  const TemporaryDirectory root;
  const auto path = (root.path() / "job").string();
  const auto child = ::fork();
  if (child == 0) {
    JobDirectory directory(path);
    {
      StatusBoard board;
      Doorman doorman(directory, board);
      (void)doorman.next(Seconds(20));
      directory.write_end("rank 1 is gone");
    }
    while (true) ::pause();
  }
  auto failure = failure_of([&] { (void)ask(path, update_request(), nullptr, Seconds(20)); });
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kPeerLost);
  CHECK(std::string(failure->what()).find(": rank 1 is gone") != std::string::npos);
  failure = failed_ask(path);
  REQUIRE(failure);
  CHECK(std::string(failure->what()).find("no job serves at") != std::string::npos);
  const JobDirectory next(path);
  REQUIRE(next.former());
  CHECK(next.former()->end == "rank 1 is gone");
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST_CASE("last words that come late are waited for") {
  const TemporaryDirectory root;
  const auto path = (root.path() / "job").string();
  std::optional<Error> failure;
  std::thread client;
  std::string private_directory;
  {
    JobDirectory directory(path);
    private_directory = directory.private_directory();
    StatusBoard board;
    Doorman doorman(directory, board);
    client = std::thread([&] { failure = failure_of([&] { (void)ask(path, update_request()); }); });
    CHECK(doorman.next(Seconds(10)));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  bury_job(path, private_directory, "rank 0 is gone");
  client.join();
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kPeerLost);
  CHECK(std::string(failure->what()).find(": rank 0 is gone") != std::string::npos);
}

/// Stands where a job's door should be and says `words` to the first who comes.
class Impostor {
 public:
  Impostor(const std::string& path, std::string words)
      : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(static_cast<char*>(address.sun_path), sizeof(address.sun_path) - 1);
    if (::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        ::listen(socket_.get(), 8) != 0) {
      throw std::runtime_error("no impostor");
    }
    thread_ = std::thread([this, words = std::move(words)] {
      const UniqueFd client(::accept(socket_.get(), nullptr, nullptr));
      char request[4096];
      (void)!::recv(client.get(), request, sizeof(request), 0);
      (void)!::send(client.get(), words.data(), words.size(), MSG_NOSIGNAL);
    });
  }
  Impostor(const Impostor&) = delete;
  Impostor& operator=(const Impostor&) = delete;
  Impostor(Impostor&&) = delete;
  Impostor& operator=(Impostor&&) = delete;
  ~Impostor() { thread_.join(); }

 private:
  UniqueFd socket_;
  std::thread thread_;
};

TEST_CASE("a job that speaks otherwise, or hangs up, is no lost job") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  const JobDirectory directory(path);
  for (const auto& [words, expected] :
       {std::pair("HTTP/1.1 400 Bad Request\n\n", "cannot be understood"),
        std::pair("{\"event\":\"queued\",\"ahead\":0}\n{\"event\":", "lives, but has closed")}) {
    const Impostor impostor(directory.record().socket, words);
    const auto failure = failed_ask(path);
    REQUIRE(failure);
    CHECK(failure->code() == ExitCode::kRuntime);
    CHECK(std::string(failure->what()).find(expected) != std::string::npos);
    ::unlink(directory.record().socket.c_str());
  }
}

TEST_CASE("a request that was not taken is made again") {
  const TemporaryDirectory root;
  const auto path = root.path().string();
  JobDirectory directory(path);
  std::future<Event> answer;
  {
    const Impostor full(directory.record().socket, "");
    answer = ask_beside(path, ClientRequest{}, nullptr, Seconds(20));
  }
  ::unlink(directory.record().socket.c_str());
  StatusBoard board;
  const Doorman doorman(directory, board);
  CHECK(answer.get().exit_code == ExitCode::kOk);
}

TEST_CASE("another user's job is refused by the client, whatever the record says") {
  if (::geteuid() != 0) {
    MESSAGE("skipped: only root can play another user");
    return;
  }
  House house;
  const auto failure_of_other = [&] {
    const auto child = ::fork();
    if (child == 0) {
      if (::setresuid(65534, 65534, 65534) != 0) ::_exit(100);
      const auto failure = failed_ask(house.path);
      const std::string words = failure ? failure->what() : "";
      ::_exit(words.find("belongs to another user") == std::string::npos ? 101
              : failure->code() == ExitCode::kRequest                    ? 0
                                                                         : 102);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WEXITSTATUS(status);
  };
  REQUIRE(::chmod(house.root.path().c_str(), 0755) == 0);
  CHECK(failure_of_other() == 0);
  REQUIRE(::chmod(house.directory.private_directory().c_str(), 0755) == 0);
  REQUIRE(::chmod(house.directory.record().socket.c_str(), 0666) == 0);
  CHECK(failure_of_other() == 0);
}

TEST_CASE("what the monitor throws ends the wait for a job, and for its answer") {
  struct Impatient final : WaitMonitor {
    void poll() override {
      if (++polls > 3) throw runtime_error("told to end");
    }
    int polls = 0;
  };
  House house;
  for (const auto& path : {house.path, house.root.path().string()}) {
    Impatient monitor;
    const auto failure =
        failure_of([&] { (void)ask_job(path, update_request(), Seconds(60), nullptr, monitor); });
    REQUIRE(failure);
    CHECK(std::string(failure->what()) == "told to end");
  }
}

}  // namespace
