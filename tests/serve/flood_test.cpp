// Clients that keep to no rule, and what those who do notice of them.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "serve/house.hpp"

namespace {

using namespace awex;
using namespace awex::test;
using Clock = std::chrono::steady_clock;

size_t open_descriptors() {
  return static_cast<size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

uint64_t resident_bytes() {
  uint64_t size = 0;
  uint64_t resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

/// Seconds that honest clients wait for the status, in rising order.
std::vector<double> honest_waits(const House& house, int clients) {
  std::vector<double> waits;
  for (int i = 0; i < clients; ++i) {
    const auto start = Clock::now();
    const auto answer = ask(house.path, ClientRequest{});
    waits.push_back(Seconds(Clock::now() - start).count());
    CHECK(answer.exit_code == ExitCode::kOk);
    CHECK(!answer.status.empty());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  std::sort(waits.begin(), waits.end());
  return waits;
}

/// What a client hears that says `words`.
std::string heard(const House& house, const std::string& words) {
  RawClient client(house.directory.record().socket);
  REQUIRE(client.connect());
  client.send(words);
  return client.read_all();
}

TEST_CASE("what is no request gets one line that says so") {
  House house;
  const auto good = encode(update_request());
  const auto refused = [&](const std::string& words) {
    const auto line = heard(house, words);
    CHECK(line.find('\n') == line.size() - 1);
    const auto event = decode_event(std::string_view(line).substr(0, line.size() - 1));
    CHECK(event.exit_code == ExitCode::kRequest);
    return event.error ? std::string(event.error->what()) : "";
  };
  CHECK(refused("GET / HTTP/1.1\r\n\r\n").find("not valid JSON") != std::string::npos);
  CHECK(refused("\n").find("not valid JSON") != std::string::npos);
  CHECK(refused(std::string(1, '\0') + "\n").find("a byte of value 0") != std::string::npos);
  CHECK(refused(std::string(10'000, '[') + "\n").find("nested deeper") != std::string::npos);
  CHECK(refused("{\"protocol\":99}\n").find("version 99") != std::string::npos);
  CHECK(refused("{\"protocol\":1,\"protocol\":1}\n").find("twice") != std::string::npos);
  CHECK(refused(std::string(kLongestRequest, ' ')).find("longer than 16384") != std::string::npos);
  CHECK(refused(std::string(kLongestRequest, ' ') + good).find("longer") != std::string::npos);
  CHECK(refused(std::string(1 << 20, 'x')).find("longer") != std::string::npos);
  CHECK_FALSE(house.doorman.next(Seconds(0)));
  // The longest that is none too long.
  RawClient client(house.directory.record().socket);
  REQUIRE(client.connect());
  CHECK(client.send(std::string(kLongestRequest - good.size(), ' ') + good));
  CHECK(house.doorman.next(Seconds(10)));
}

TEST_CASE("a request may come in pieces, and what follows it does not count") {
  House house;
  RawClient client(house.directory.record().socket);
  REQUIRE(client.connect());
  for (const char c : encode(update_request())) {
    REQUIRE(client.send(std::string(1, c)));
  }
  client.send("more\n" + encode(update_request()));
  const auto visit = house.doorman.next(Seconds(10));
  REQUIRE(visit);
  house.doorman.tell(visit->client, done_event());
  CHECK(client.read_all().find("\"done\"") != std::string::npos);
  CHECK_FALSE(house.doorman.next(Seconds(0)));
}

/// Floods a door from a thread until it is over.
class Flood {
 public:
  explicit Flood(std::function<void()> once)
      : thread_([this, once = std::move(once)] {
          while (!over_) once();
        }) {}
  Flood(const Flood&) = delete;
  Flood& operator=(const Flood&) = delete;
  Flood(Flood&&) = delete;
  Flood& operator=(Flood&&) = delete;
  ~Flood() {
    over_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> over_{false};
  std::thread thread_;
};

TEST_CASE("a flood neither keeps honest clients waiting nor takes memory or descriptors") {
  House house;
  const auto& socket = house.directory.record().socket;
  const auto descriptors = open_descriptors();
  CHECK(honest_waits(house, 1).size() == 1);
  [[maybe_unused]] const auto memory = resident_bytes();
  std::atomic<int> visits{0};
  {
    std::vector<RawClient> kept;  // half requests that are never completed
    for (size_t i = 0; i < Doorman::kMostClients + 50; ++i) {
      kept.emplace_back(socket);
      REQUIRE(kept.back().connect());
      kept.back().send("{\"protocol\":1,");
    }
    const auto say = [&](const std::string& words) {
      RawClient client(socket);
      if (client.connect()) client.send(words);
      ++visits;
    };
    std::string garbage(20'000, '\0');
    for (size_t i = 0; i < garbage.size(); ++i) garbage[i] = static_cast<char>(i * 31);
    int kind = 0;
    const Flood of_all_kinds([&] {
      switch (kind++ % 6) {
        case 0:
          return say("");
        case 1:
          return say("{\"protocol\":1,");
        case 2:
          return say(garbage);
        case 3:
          return say(std::string(5'000, '{') + "\n");
        case 4:
          return say(encode(ClientRequest{}));  // and does not read
        default:
          return say(encode(update_request(true)));  // and goes away
      }
    });
    const Flood of_half_requests([&] { say("{\"protocol\""); });
    const auto waits = honest_waits(house, 100);
    CHECK(waits[waits.size() / 2] < 0.1);
    CHECK(waits.back() < 2);  // on a machine that does other things, too
    CHECK(soon([&] { return visits > 2000; }));
  }
  while (const auto visit = house.doorman.next(Seconds(0))) {
    house.doorman.tell(visit->client, done_event());
  }
  CHECK(soon([&] { return open_descriptors() == descriptors; }));
#ifndef __SANITIZE_ADDRESS__  // which keeps freed memory for long
  CHECK(resident_bytes() < memory + (32 << 20));
#endif
}

TEST_CASE("commands fill the queue, not the memory, and the status is told all the same") {
  House house;
  std::vector<RawClient> clients;
  std::string refusal;
  for (size_t i = 0; i < 2 * Doorman::kMostClients && refusal.empty(); ++i) {
    clients.push_back(visitor(house, update_request()));
    if (i >= 100) clients.back().hang_up();  // commands of those who leave them stay
    if (house.board.read().queued >= Doorman::kMostClients - 16) {
      auto last = visitor(house, update_request());
      refusal = last.read_all();
    }
  }
  CHECK(refusal.find("commands wait already") != std::string::npos);
  CHECK(ask(house.path, ClientRequest{}).exit_code == ExitCode::kOk);
}

TEST_CASE("more clients than there may be are told so, once they all wait for commands") {
  House house;
  std::vector<RawClient> waiting;
  for (size_t i = 0; i + 16 < Doorman::kMostClients; ++i) {
    waiting.push_back(visitor(house, update_request()));
  }
  REQUIRE(queue_is(house, waiting.size()));
  // Half requests take the other places, and give them up to those who come later.
  std::vector<RawClient> silent;
  for (int i = 0; i < 40; ++i) {
    silent.emplace_back(house.directory.record().socket);
    REQUIRE(silent.back().connect());
  }
  CHECK(ask(house.path, ClientRequest{}).exit_code == ExitCode::kOk);
  CHECK(silent.front().is_closed_within(std::chrono::seconds(4)));
  for (size_t i = 0; i < waiting.size(); ++i) {
    const auto visit = house.doorman.next(Seconds(10));
    REQUIRE(visit);
    house.doorman.tell(visit->client, done_event());
    CHECK(waiting[i].read_all().find("\"done\"") != std::string::npos);
  }
}

TEST_CASE("who does not send a request is given up, and who does not read the answer") {
  House house;
  auto deaf = visitor(house, update_request());
  const auto visit = house.doorman.next(Seconds(10));
  REQUIRE(visit);
  const auto descriptors = open_descriptors();
  auto done = done_event();
  done.trace = std::string(8 << 20, 'x');
  house.doorman.tell(visit->client, done);
  CHECK(open_descriptors() == descriptors);
  RawClient silent(house.directory.record().socket);
  RawClient slow(house.directory.record().socket);
  const auto start = Clock::now();
  REQUIRE(silent.connect());
  REQUIRE(slow.connect());
  int sent = 0;
  while (!slow.is_closed_within(std::chrono::milliseconds(100))) {
    slow.send(" ");
    REQUIRE(++sent < 200);
  }
  CHECK(Seconds(Clock::now() - start).count() >= 4.9);
  CHECK(silent.is_closed_within(std::chrono::seconds(1)));
  // Of all three there are only their own ends.
  CHECK(soon([&] { return open_descriptors() == descriptors + 2 - 1; }));
}

TEST_CASE("a door without descriptors says so, does not spin, and opens again") {
  House house;
  CHECK(ask(house.path, ClientRequest{}).exit_code == ExitCode::kOk);
  std::vector<RawClient> clients;
  for (int i = 0; i < 8; ++i) clients.emplace_back(house.directory.record().socket);
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  const int first_free = ::dup(0);
  ::close(first_free);
  const rlimit none{static_cast<rlim_t>(first_free), before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  for (auto& client : clients) REQUIRE(client.connect());
  const auto processor = processor_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(processor_seconds() - processor < 0.1);
  const auto words =
      clients.back().read_all();  // the first may have found one that was just closed
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(words.find("too many open files") != std::string::npos);
  for (auto& client : clients) client.hang_up();
  CHECK(ask(house.path, ClientRequest{}).exit_code == ExitCode::kOk);
}

}  // namespace
