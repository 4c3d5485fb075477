#include "comm/process_watch.hpp"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

namespace {

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
  for (int i = 0; i < 5000; ++i) {
    if (predicate()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

}  // namespace

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
