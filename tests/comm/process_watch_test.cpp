#include "comm/process_watch.hpp"

#include <doctest/doctest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <thread>

#include "comm/bell.hpp"

namespace {

using awex::Seconds;

/// A child that sleeps until it is killed.
class Child {
 public:
  Child() : pid_(::fork()) {
    if (pid_ == 0) {
      while (true) ::pause();
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  Child(Child&&) = delete;
  Child& operator=(Child&&) = delete;
  ~Child() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  [[nodiscard]] int pid() const { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }

 private:
  int pid_;
};

template <class Predicate>
bool soon(Predicate predicate) {
  for (int i = 0; i < 60000; ++i) {
    if (predicate()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

/// From now on pidfd_open fails with `error` in this process. Whether that worked.
bool refuse_pidfds(int error) {
  std::array<sock_filter, 4> filter{
      {{BPF_LD | BPF_W | BPF_ABS, 0, 0, 0},
       {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_pidfd_open},
       {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)},
       {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}}};
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0 &&
         ::syscall(SYS_pidfd_open, ::getpid(), 0) == -1 && errno == error;
}

/// What goes wrong when processes are watched with pidfd_open refused; 0 for nothing.
int watch_without_pidfds(int error) {
  if (!refuse_pidfds(error)) return 1;
  int dead = 0;
  {
    const Child child;
    dead = child.pid();
  }
  const Child first;
  const Child second;
  awex::ProcessWatch watch;
  watch.add(4, first.pid());
  watch.add(5, second.pid());
  if (!watch.gone().empty()) return 2;
  second.signal(SIGSTOP);
  if (!soon([&] { return awex::is_stopped(second.pid()); }) || !watch.gone().empty()) return 3;
  second.signal(SIGKILL);  // a zombie from then on
  if (!soon([&] { return watch.gone() == std::vector<int>{5}; })) return 4;
  watch.add(6, dead);
  if (watch.gone() != std::vector<int>{5, 6}) return 5;
  return 0;
}

}  // namespace

TEST_CASE("processes are watched where pidfds are refused or missing") {
  for (const int error : {EPERM, ENOSYS, EACCES}) {
    CAPTURE(error);
    const int pid = ::fork();
    if (pid == 0) ::_exit(watch_without_pidfds(error));
    int status = 0;
    REQUIRE(::waitpid(pid, &status, 0) == pid);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
  }
}

TEST_CASE("a process that ends is seen, as a zombie already") {
  const Child first;
  const Child second;
  awex::ProcessWatch watch;
  watch.add(4, first.pid());
  watch.add(5, second.pid());
  CHECK(watch.gone().empty());
  second.signal(SIGKILL);
  CHECK(soon([&] { return watch.gone() == std::vector<int>{5}; }));
  first.signal(SIGKILL);
  CHECK(soon([&] { return watch.gone() == std::vector<int>{4, 5}; }));
  watch.clear();
  CHECK(watch.gone().empty());
}

TEST_CASE("a pid that does not exist is gone at once") {
  int dead = 0;
  {
    const Child child;
    dead = child.pid();
  }
  awex::ProcessWatch watch;
  watch.add(1, dead);
  CHECK(watch.gone() == std::vector<int>{1});
}

TEST_CASE("a stopped process is told from a running one") {
  const Child child;
  CHECK_FALSE(awex::is_stopped(child.pid()));
  child.signal(SIGSTOP);
  CHECK(soon([&] { return awex::is_stopped(child.pid()); }));
  child.signal(SIGCONT);
  CHECK(soon([&] { return !awex::is_stopped(child.pid()); }));
}

TEST_CASE("a process that computes is told from one that sleeps") {
  const Child sleeper;
  const int computer = ::fork();
  if (computer == 0) {
    while (::getppid() != 0) {
    }
  }
  const auto ticks = [](int pid) {
    const auto activity = awex::activity_of(pid);
    return activity ? activity->processor_ticks : 0;
  };
  CHECK(soon([&] { return awex::activity_of(computer)->is_busy; }));
  CHECK(soon([&] { return ticks(computer) > 5; }));
  CHECK(soon([&] { return !awex::activity_of(sleeper.pid())->is_busy; }));
  CHECK(ticks(sleeper.pid()) <= 5);
  ::kill(computer, SIGKILL);
  ::waitpid(computer, nullptr, 0);
  CHECK_FALSE(awex::activity_of(computer));
}

TEST_CASE("a bell wakes who sleeps, once for all that rang before") {
  const awex::Bell here;
  const awex::Bell there;
  CHECK_FALSE(here.name() == there.name());
  CHECK_FALSE(here.wait(Seconds(0)));
  for (int i = 0; i < 1000; ++i) there.ring(here.name());  // more than are kept
  CHECK(here.wait(Seconds(60)));
  CHECK_FALSE(here.wait(Seconds(0)));
  CHECK_FALSE(there.wait(Seconds(0)));
  std::thread ringer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    there.ring(here.name());
  });
  CHECK(here.wait(Seconds(60)));
  ringer.join();
  awex::BellName gone{};
  {
    const awex::Bell other;
    gone = other.name();
  }
  here.ring(gone);  // nobody hears it
}
