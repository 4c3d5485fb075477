#include "base/log.hpp"

#include <doctest/doctest.h>

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <string>

#include "base/unique_fd.hpp"

using namespace awex;

namespace {

/// While it lives, stderr is a pipe.
class StderrPipe {
 public:
  StderrPipe() : before_(::dup(STDERR_FILENO)) {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    reader_ = UniqueFd(ends[0]);
    REQUIRE(::dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
    ::close(ends[1]);
    ::fcntl(reader_.get(), F_SETFL, O_NONBLOCK);
  }
  StderrPipe(const StderrPipe&) = delete;
  StderrPipe& operator=(const StderrPipe&) = delete;
  StderrPipe(StderrPipe&&) = delete;
  StderrPipe& operator=(StderrPipe&&) = delete;
  ~StderrPipe() { ::dup2(before_.get(), STDERR_FILENO); }

  /// Until it takes nothing more.
  void fill() const {
    ::fcntl(STDERR_FILENO, F_SETFL, O_NONBLOCK);
    const std::string filler(4096, '.');
    while (::write(STDERR_FILENO, filler.data(), filler.size()) > 0) {
    }
    ::fcntl(STDERR_FILENO, F_SETFL, 0);
  }
  /// All that is in it.
  [[nodiscard]] std::string read() const {
    std::string text;
    std::array<char, 4096> part{};
    for (ssize_t got = 0; (got = ::read(reader_.get(), part.data(), part.size())) > 0;) {
      text.append(part.data(), static_cast<size_t>(got));
    }
    return text;
  }

 private:
  UniqueFd before_;
  UniqueFd reader_;
};

}  // namespace

TEST_CASE("a stopped reader of stderr holds nothing up, and is told how much it has missed") {
  const StderrPipe pipe;
  log::set_patience(Seconds(0.05));
  pipe.fill();
  log::note("lost");
  log::warning("lost");
  log::error(runtime_error("lost"));
  log::draw("lost");
  const auto filler = pipe.read();
  CHECK(filler.find("lost") == std::string::npos);
  log::note("heard");
  log::note("again");
  CHECK(pipe.read() == "warning: 3 lines are lost: stderr was not read\nheard\nagain\n");
  log::set_patience(Seconds(30));
}

TEST_CASE("long lines arrive whole") {
  const StderrPipe pipe;
  const std::string text(10'000, 'x');
  log::note(text);
  CHECK(pipe.read() == text + "\n");
}
