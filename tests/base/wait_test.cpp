#include "base/wait.hpp"

#include <doctest/doctest.h>

#include <string>

#include "support/renewing_monitor.hpp"

using namespace awex;

namespace {

class ThrowingMonitor final : public WaitMonitor {
 public:
  void poll() override { throw runtime_error("rank 3 failed"); }
};

}  // namespace

TEST_CASE("a wait ends when its work is done, and asks until then") {
  NoMonitor monitor;
  int asked = 0;
  wait_until([&] { return ++asked == 5000; }, "counting", Deadline(Seconds(60)), monitor);
  CHECK(asked == 5000);
}

TEST_CASE("progress renews the deadline of a wait, and a wait without it ends") {
  test::RenewingMonitor monitor;
  const Stopwatch watch;
  const auto tells = [&] {
    monitor.progressed({});
    return watch.seconds() > 1.2;
  };
  CHECK_NOTHROW(wait_until(tells, "slow work", Deadline(Seconds(1)), monitor));
  CHECK_THROWS_AS(wait_until([] { return false; }, "silent work", Deadline(Seconds(0.05)), monitor),
                  Error);
}

TEST_CASE("work that is done is done, whatever the monitor and the deadline say") {
  ThrowingMonitor monitor;
  const Deadline passed(Seconds(0));
  CHECK(passed.expired());
  CHECK_NOTHROW(wait_until([] { return true; }, "nothing", passed, monitor));
}

TEST_CASE("a deadline that passes names what was waited for and how long") {
  NoMonitor monitor;
  const Stopwatch watch;
  try {
    wait_until([] { return false; }, "the copy of \"weights\"", Deadline(Seconds(0.05)), monitor);
    FAIL_CHECK("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kDeadline);
    CHECK(std::string(error.what()) == "the copy of \"weights\" is not done after 50.0 ms");
  }
  CHECK(watch.seconds() >= 0.05);
}

TEST_CASE("what the monitor throws ends the wait") {
  ThrowingMonitor monitor;
  CHECK_THROWS_WITH_AS(wait_until([] { return false; }, "nothing", Deadline(Seconds(60)), monitor),
                       "rank 3 failed", Error);
}
