#include "comm/arrival_watch.hpp"

#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/unique_fd.hpp"
#include "base/wait.hpp"

using awex::Seconds;

namespace {

/// A TCP connection from this process to itself.
struct Connection {
  awex::UniqueFd listener{::socket(AF_INET, SOCK_STREAM, 0)};
  awex::UniqueFd out{::socket(AF_INET, SOCK_STREAM, 0)};
  awex::UniqueFd in;

  Connection() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    auto* place = reinterpret_cast<sockaddr*>(&address);
    socklen_t size = sizeof(address);
    REQUIRE(::bind(listener.get(), place, size) == 0);
    REQUIRE(::listen(listener.get(), 1) == 0);
    REQUIRE(::getsockname(listener.get(), place, &size) == 0);
    REQUIRE(::connect(out.get(), place, size) == 0);
    in = awex::UniqueFd(::accept(listener.get(), nullptr, nullptr));
    REQUIRE(in.valid());
  }
  void send() const { CHECK(::send(out.get(), "x", 1, 0) == 1); }
  void receive() const {
    char letter = 0;
    CHECK(::recv(in.get(), &letter, 1, 0) == 1);
  }
};

struct Sleep {
  bool woken;
  double seconds;
};

Sleep sleep_with(awex::ArrivalWatch& watch, const awex::Bell& bell) {
  const awex::Stopwatch watch_of_sleep;
  const bool woken = watch.sleep(bell);
  return {woken, watch_of_sleep.seconds()};
}

constexpr double kLong = 0.09;  ///< Of a sleep that is known to be woken.

}  // namespace

TEST_CASE("sleeps are long only where arrivals have been seen to wake") {
  const Connection wire;
  const awex::Bell bell;
  awex::ArrivalWatch watch;
  watch.begin();
  CHECK_FALSE(watch.sleep(bell));
  wire.send();
  CHECK(watch.sleep(bell));
  wire.receive();
  watch.end();

  watch.begin();
  auto sleep = sleep_with(watch, bell);
  CHECK_FALSE(sleep.woken);
  CHECK(sleep.seconds >= kLong);
  wire.send();
  CHECK(watch.sleep(bell));
  wire.receive();
  CHECK_FALSE(watch.sleep(bell));
  watch.end();  // what came has not woken it

  watch.begin();
  double shortest = 1;
  for (int tries = 0; tries < 20; ++tries) {
    shortest = std::min(shortest, sleep_with(watch, bell).seconds);
  }
  CHECK(shortest < kLong);
}

TEST_CASE("what MPI leaves alone wakes once") {
  const Connection wire;
  const awex::Bell bell;
  awex::ArrivalWatch watch;
  watch.begin();
  wire.send();
  CHECK(watch.sleep(bell));
  CHECK_FALSE(watch.sleep(bell));
  watch.begin();
  CHECK_FALSE(watch.sleep(bell));
}

TEST_CASE("who sleeps hears the bell, too") {
  const awex::Bell here;
  const awex::Bell there;
  awex::ArrivalWatch watch;
  watch.begin();
  there.ring(here.name());
  CHECK(watch.sleep(here));
  CHECK_FALSE(watch.sleep(here));
}
