#include "base/whole_file.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "base/unique_fd.hpp"

using namespace awex;

TEST_CASE("what is written from the start is read from there, wherever the descriptor stands") {
  const UniqueFd fd(::memfd_create("awex-test", MFD_CLOEXEC));
  REQUIRE(fd.valid());
  const std::string text("a\0b\xff", 4);
  CHECK(write_from_start(fd.get(), text));
  REQUIRE(::lseek(fd.get(), 3, SEEK_SET) == 3);
  CHECK(read_from_start(fd.get(), 100) == text);
  CHECK(read_from_start(fd.get(), 2) == text.substr(0, 2));
  CHECK(read_from_start(fd.get(), 0) == "");
  CHECK(::lseek(fd.get(), 0, SEEK_CUR) == 3);
}

TEST_CASE("what cannot be read or written is told by errno") {
  const UniqueFd none(::open("/dev/null", O_PATH | O_CLOEXEC));
  REQUIRE(none.valid());
  errno = 0;
  CHECK_FALSE(read_from_start(none.get(), 1).has_value());
  CHECK(errno == EBADF);
  errno = 0;
  CHECK_FALSE(write_from_start(none.get(), "x"));
  CHECK(errno == EBADF);
}
