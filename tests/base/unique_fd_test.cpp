#include "base/unique_fd.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>

#include <utility>

using namespace awex;

namespace {

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) != -1; }

int open_something() { return ::open("/dev/null", O_RDONLY | O_CLOEXEC); }

}  // namespace

TEST_CASE("a descriptor is closed once, by its last owner") {
  const int number = open_something();
  REQUIRE(is_open(number));
  {
    UniqueFd first(number);
    UniqueFd second(std::move(first));
    CHECK_FALSE(first.valid());  // NOLINT(bugprone-use-after-move): this is what is tested
    CHECK(second.get() == number);
    CHECK(is_open(number));
  }
  CHECK_FALSE(is_open(number));
}

TEST_CASE("assignment closes what was owned before") {
  const int before = open_something();
  const int after = open_something();
  UniqueFd fd(before);
  fd = UniqueFd(after);
  CHECK_FALSE(is_open(before));
  CHECK(fd.get() == after);
  fd.reset();
  CHECK_FALSE(fd.valid());
  CHECK_FALSE(is_open(after));
}
