// Rank 0's door, as clients meet it that keep to the protocol.
#include "serve/doorman.hpp"

#include <doctest/doctest.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include "serve/house.hpp"

namespace {

using namespace awex;
using namespace awex::test;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return Seconds(Clock::now() - start).count(); }

TEST_CASE("a command is queued, begins, goes through phases and is done") {
  House house;
  std::vector<Event> heard;
  auto answer = ask_beside(house.path, update_request(), &heard);
  const auto visit = house.doorman.next(Seconds(10));
  REQUIRE(visit);
  CHECK(visit->request.errand == Errand::kUpdate);
  CHECK(visit->request.command.command == Command::kHandOver);
  house.doorman.tell(visit->client, phase_event("transfer"));
  house.doorman.tell(visit->client, done_event(ExitCode::kMismatch));
  CHECK(answer.get().exit_code == ExitCode::kMismatch);
  REQUIRE(heard.size() == 2);
  CHECK(heard[0].kind == Event::Kind::kQueued);
  CHECK(heard[0].ahead == 0);
  CHECK(heard[1].phase == "transfer");
}

TEST_CASE("64 clients at once are served in the order of their coming") {
  House house;
  std::vector<RawClient> clients;
  for (int i = 0; i < 64; ++i) {
    auto request = update_request();
    request.command.train = i % 2 == 0;
    request.command.verify = i % 3 == 0 ? Verify::kFull : Verify::kOff;
    clients.push_back(visitor(house, request));
  }
  REQUIRE(queue_is(house, 64));
  uint64_t last = 0;
  for (int i = 0; i < 64; ++i) {
    const auto visit = house.doorman.next(Seconds(10));
    REQUIRE(visit);
    CHECK(visit->client > last);
    last = visit->client;
    CHECK(visit->request.command.train == (i % 2 == 0));
    CHECK(visit->request.command.verify == (i % 3 == 0 ? Verify::kFull : Verify::kOff));
    auto done = done_event();
    done.table = std::to_string(i);
    house.doorman.tell(visit->client, done);
    const auto words = clients[static_cast<size_t>(i)].read_all();
    CHECK(words.find("\"ahead\":" + std::to_string(i) + "}") != std::string::npos);
    CHECK(words.find("\"table\":\"" + std::to_string(i) + "\"") != std::string::npos);
  }
  CHECK(house.board.read().queued == 0);
}

TEST_CASE("the status is told while a command runs") {
  House house;
  auto answer = ask_beside(house.path, update_request());
  const auto visit = house.doorman.next(Seconds(10));
  REQUIRE(visit);
  house.board.update([](JobStatus& status) {
    status.activity = JobStatus::Activity::kRunning;
    status.phase = "transfer";
  });
  const auto status = ask(house.path, ClientRequest{});
  CHECK(status.exit_code == ExitCode::kOk);
  CHECK(status.status.find("\"phase\": \"transfer\"") != std::string::npos);
  house.doorman.tell(visit->client, done_event());
  CHECK(answer.get().exit_code == ExitCode::kOk);
}

TEST_CASE("a client that goes away takes its command with it only where it wants to") {
  House house;
  SUBCASE("the command that runs") {
    for (const bool cancels : {false, true}) {
      CAPTURE(cancels);
      auto client = visitor(house, update_request(cancels));
      const auto visit = house.doorman.next(Seconds(10));
      REQUIRE(visit);
      CHECK_FALSE(house.doorman.is_cancelled(visit->client));
      client.hang_up();
      if (cancels) {
        CHECK(soon([&] { return house.doorman.is_cancelled(visit->client); }));
      } else {
        // The thread has seen it go when it has answered another that came later.
        CHECK(ask(house.path, ClientRequest{}).exit_code == ExitCode::kOk);
        CHECK_FALSE(house.doorman.is_cancelled(visit->client));
      }
      house.doorman.tell(visit->client, done_event());
      CHECK_FALSE(house.doorman.is_cancelled(visit->client));
    }
  }
  SUBCASE("commands that wait") {
    auto first = visitor(house, update_request());
    REQUIRE(queue_is(house, 1));
    auto goes = visitor(house, update_request(true));
    REQUIRE(queue_is(house, 2));
    auto leaves_it = visitor(house, update_request(false));
    REQUIRE(queue_is(house, 3));
    goes.hang_up();
    leaves_it.hang_up();
    REQUIRE(queue_is(house, 2));
    const auto one = house.doorman.next(Seconds(10));
    REQUIRE(one);
    house.doorman.tell(one->client, done_event());
    const auto other = house.doorman.next(Seconds(10));
    REQUIRE(other);
    CHECK_FALSE(other->request.cancel_on_disconnect);
    house.doorman.tell(other->client, done_event());
    CHECK_FALSE(house.doorman.next(Seconds(0)));
  }
}

TEST_CASE("a client that has said all it has to say still waits for its answer") {
  House house;
  auto client = visitor(house, update_request(true));
  client.finish_sending();
  const auto visit = house.doorman.next(Seconds(10));
  REQUIRE(visit);
  CHECK(ask(house.path, ClientRequest{}).exit_code == ExitCode::kOk);
  CHECK_FALSE(house.doorman.is_cancelled(visit->client));
  house.doorman.tell(visit->client, done_event());
  CHECK(client.read_all().find("\"done\"") != std::string::npos);
}

TEST_CASE("next waits as long as it may, and not when it is woken") {
  House house;
  auto start = Clock::now();
  CHECK_FALSE(house.doorman.next(Seconds(0.05)));
  CHECK(seconds_since(start) >= 0.05);
  house.doorman.wake();
  start = Clock::now();
  CHECK_FALSE(house.doorman.next(Seconds(60)));
  CHECK(seconds_since(start) < 30);
}

std::atomic<Doorman*> doorman_of_handler{nullptr};

TEST_CASE("a signal handler may wake the one that waits") {
  House house;
  doorman_of_handler = &house.doorman;
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = [](int) { doorman_of_handler.load()->wake(); };
  ::sigaction(SIGUSR1, &action, &before);
  const auto waiting = ::pthread_self();
  std::thread other([waiting] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ::pthread_kill(waiting, SIGUSR1);
  });
  const auto start = Clock::now();
  CHECK_FALSE(house.doorman.next(Seconds(60)));
  CHECK(seconds_since(start) < 30);
  other.join();
  ::sigaction(SIGUSR1, &before, nullptr);
}

TEST_CASE("a door at which nobody knocks costs nothing") {
  House house;
  CHECK(ask(house.path, ClientRequest{}).exit_code == ExitCode::kOk);
  const auto before = processor_seconds();
  CHECK_FALSE(house.doorman.next(Seconds(0.5)));
  CHECK(processor_seconds() - before < 0.02);
}

TEST_CASE("when the job ends everyone who waits or comes is told why") {
  House house;
  auto running = visitor(house, update_request());
  const auto visit = house.doorman.next(Seconds(10));
  REQUIRE(visit);
  auto waiting = visitor(house, update_request());
  REQUIRE(queue_is(house, 1));
  RawClient silent(house.directory.record().socket);
  REQUIRE(silent.connect());
  CHECK(ask(house.path, ClientRequest{}).exit_code == ExitCode::kOk);  // it has been taken in
  house.doorman.close(Error(ExitCode::kPeerLost, "rank 1 is gone", "see its log"), Seconds(5));
  for (auto* client : {&waiting, &silent}) {
    const auto words = client->read_all();
    CHECK(words.find("rank 1 is gone") != std::string::npos);
    CHECK(words.find("\"exit_code\":5") != std::string::npos);
  }
  CHECK_FALSE(house.doorman.next(Seconds(0)));
  for (const auto errand : {Errand::kUpdate, Errand::kStatus}) {
    auto request = update_request();
    request.errand = errand;
    const auto late = ask(house.path, request);
    CHECK(late.exit_code == ExitCode::kPeerLost);
    REQUIRE(late.error);
    CHECK(late.error->hint() == "see its log");
  }
  house.doorman.tell(visit->client, done_event(ExitCode::kRuntime));
  CHECK(running.read_all().find("\"exit_code\":1") != std::string::npos);
}

TEST_CASE("what was told before the end is sent, as long as that may take") {
  House house;
  auto client = visitor(house, update_request());
  const auto visit = house.doorman.next(Seconds(10));
  REQUIRE(visit);
  auto done = done_event();
  done.trace = std::string(4 << 20, 'x');
  house.doorman.tell(visit->client, done);
  auto words = std::async(std::launch::async, [&] { return client.read_all(); });
  house.doorman.close(runtime_error("the job has ended"), Seconds(20));
  CHECK(words.get().size() > done.trace.size());

  auto slow = visitor(house, ClientRequest{});
  const auto start = Clock::now();
  house.doorman.close(runtime_error("the job has ended"), Seconds(5));
  CHECK(seconds_since(start) < 4);  // its answer is short: nobody need read it
}

TEST_CASE("a client that reads slowly loses phases, but not its answer") {
  House house;
  auto client = visitor(house, update_request());
  const auto visit = house.doorman.next(Seconds(10));
  REQUIRE(visit);
  const auto start = Clock::now();
  constexpr int kPhases = 100'000;
  for (int i = 0; i < kPhases; ++i) house.doorman.tell(visit->client, phase_event("transfer"));
  house.doorman.tell(visit->client, done_event(ExitCode::kDeadline));
  CHECK(seconds_since(start) < 20);
  const auto words = client.read_all();
  CHECK(words.size() < 2 << 20);
  const auto last_line = words.rfind('\n', words.size() - 2) + 1;
  const auto last = decode_event(std::string_view(words).substr(last_line));
  CHECK(last.kind == Event::Kind::kDone);
  CHECK(last.exit_code == ExitCode::kDeadline);
}

/// What another user's process hears at a socket; "" where it cannot connect.
std::string heard_by_other_user(const std::string& socket) {
  std::array<int, 2> pipe{};
  REQUIRE(::pipe(pipe.data()) == 0);
  RawClient client(socket);
  const auto child = ::fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    if (::setresgid(kNobody, kNobody, kNobody) != 0) ::_exit(1);
    if (::setresuid(kNobody, kNobody, kNobody) != 0) ::_exit(1);
    if (!client.connect()) ::_exit(2);
    client.send(encode(ClientRequest{}));
    const auto words = client.read_all();
    ::_exit(::write(pipe[1], words.data(), words.size()) < 0 ? 3 : 0);
  }
  ::close(pipe[1]);
  std::string words(4096, '\0');
  size_t bytes = 0;
  while (true) {
    const auto count = ::read(pipe[0], words.data() + bytes, words.size() - bytes);
    if (count <= 0) break;
    bytes += static_cast<size_t>(count);
  }
  words.resize(bytes);
  ::close(pipe[0]);
  ::waitpid(child, nullptr, 0);
  return words;
}

TEST_CASE("another user is refused, by the directory and by the door") {
  if (::geteuid() != 0) {
    MESSAGE("skipped: only root can play another user");
    return;
  }
  House house;
  const auto& socket = house.directory.record().socket;
  CHECK(heard_by_other_user(socket).empty());
  REQUIRE(::chmod(house.directory.private_directory().c_str(), 0755) == 0);
  REQUIRE(::chmod(socket.c_str(), 0666) == 0);
  const auto words = heard_by_other_user(socket);
  REQUIRE(!words.empty());
  CHECK(words.find('\n') == words.size() - 1);
  const auto event = decode_event(std::string_view(words).substr(0, words.size() - 1));
  CHECK(event.kind == Event::Kind::kDone);
  CHECK(event.exit_code == ExitCode::kRequest);
  REQUIRE(event.error);
  CHECK(std::string(event.error->what()) ==
        "refused: this job belongs to another user (uid 0, not 65534)");
  CHECK(event.status.empty());
}

}  // namespace
