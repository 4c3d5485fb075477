#include "transfer/share/fd_transport.hpp"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <set>

#include "base/error.hpp"

namespace {

using awex::Deadline;
using awex::Error;
using awex::FdSocket;
using awex::fetch_by_pidfd;
using awex::fetch_by_socket;
using awex::Seconds;
using awex::UniqueFd;

/// Anonymous files whose only content is their own number.
struct Files {
  explicit Files(int count) {
    for (int i = 0; i < count; ++i) {
      owners.emplace_back(::memfd_create("awex-test", MFD_CLOEXEC));
      numbers.push_back(owners.back().get());
      REQUIRE(::pwrite(numbers.back(), &i, sizeof(i), 0) == sizeof(i));
    }
  }
  std::vector<UniqueFd> owners;
  std::vector<int> numbers;
};

bool hold_their_numbers(const std::vector<UniqueFd>& fds) {
  for (size_t i = 0; i < fds.size(); ++i) {
    int content = -1;
    if (::pread(fds[i].get(), &content, sizeof(content), 0) != sizeof(content)) return false;
    if (content != static_cast<int>(i)) return false;
  }
  return true;
}

/// A child process that does `work` and exits with its result.
class Child {
 public:
  explicit Child(const std::function<int()>& work) : pid_(::fork()) {
    if (pid_ != 0) return;
    int code = 99;
    try {
      code = work();
    } catch (const Error& e) {
      code = 90 + static_cast<int>(e.code());
    }
    ::_exit(code);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  Child(Child&&) = delete;
  Child& operator=(Child&&) = delete;
  ~Child() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      (void)exit_code();
    }
  }

  [[nodiscard]] int pid() const { return pid_; }
  int exit_code() {
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  int pid_;
};

awex::NoMonitor g_monitor;

/// Serves `count` files to a child and says what the child found.
int serve_to_child(int count) {
  const Files files(count);
  FdSocket socket;
  const int parent = ::getpid();
  Child child([&] {
    const auto fds = fetch_by_socket(socket.name(), parent, static_cast<size_t>(count), "a test",
                                     Deadline(Seconds(60)), g_monitor);
    return static_cast<int>(fds.size()) == count && hold_their_numbers(fds) ? 0 : 1;
  });
  socket.serve(child.pid(), files.numbers, "a test", Deadline(Seconds(60)), g_monitor);
  return child.exit_code();
}

}  // namespace

TEST_CASE("a socket hands out any number of descriptors, in order") {
  for (const int count : {1, 2, 252, 253, 254, 256}) {
    CAPTURE(count);
    CHECK(serve_to_child(count) == 0);
  }
}

TEST_CASE("pidfd takes a child's descriptors, in order") {
  const Files files(256);
  const Child child([] { return ::pause(); });
  const auto result = fetch_by_pidfd(child.pid(), files.numbers);
  CHECK(result.refusal == 0);
  CHECK(result.fds.size() == 256);
  CHECK(hold_their_numbers(result.fds));
}

TEST_CASE("a descriptor that does not exist is an error, not a refusal") {
  const std::vector<int> numbers{987654};
  CHECK_THROWS_AS((void)fetch_by_pidfd(::getpid(), numbers), Error);
}

TEST_CASE("a stranger gets nothing, and the wait for the partner ends at the deadline") {
  const Files files(1);
  FdSocket socket;
  const int parent = ::getpid();
  Child stranger([&] {
    (void)fetch_by_socket(socket.name(), parent, 1, "a test", Deadline(Seconds(60)), g_monitor);
    return 0;
  });
  const int partner = ::getpid();  // never connects
  try {
    socket.serve(partner, files.numbers, "a test", Deadline(Seconds(0.5)), g_monitor);
    FAIL("the stranger was served");
  } catch (const Error& e) {
    CHECK(e.code() == awex::ExitCode::kDeadline);
  }
  CHECK(stranger.exit_code() == 91);  // "the sender closed the socket"
}

TEST_CASE("a socket of another process than expected is not trusted") {
  const FdSocket socket;
  CHECK_THROWS_WITH_AS(
      (void)fetch_by_socket(socket.name(), 1, 1, "a test", Deadline(Seconds(5)), g_monitor),
      doctest::Contains("belongs to process"), Error);
}

TEST_CASE("names are random and fit a handle record") {
  std::set<std::string> names;
  for (int i = 0; i < 10; ++i) names.insert(FdSocket().name());
  CHECK(names.size() == 10);
  for (const auto& name : names) CHECK(name.size() < 64);
}
