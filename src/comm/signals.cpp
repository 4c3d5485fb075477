#include "comm/signals.hpp"

#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <csignal>

namespace awex {
namespace {

std::atomic<int> g_termination_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);

// What the watchdog's handler may touch: prepared before, because a handler must not allocate.
std::string g_last_words;
int g_exit_code = 1;

void on_termination(int signal_number) { g_termination_signal = signal_number; }

void on_alarm(int /*signal_number*/) {
  [[maybe_unused]] const auto written =
      ::write(STDERR_FILENO, g_last_words.data(), g_last_words.size());
  ::_exit(g_exit_code);
}

void set_handler(int signal_number, void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  ::sigaction(signal_number, &action, nullptr);
}

void set_timer(Seconds from_now) {
  double whole = 0;
  const double fraction = std::modf(from_now.count(), &whole);
  itimerval timer{};
  timer.it_value.tv_sec = static_cast<time_t>(whole);
  timer.it_value.tv_usec = static_cast<suseconds_t>(fraction * 1e6);
  ::setitimer(ITIMER_REAL, &timer, nullptr);
}

}  // namespace

void note_termination_signals() {
  constexpr int kFlags = static_cast<int>(SA_RESTART | SA_RESETHAND);
  set_handler(SIGTERM, on_termination, kFlags);
  set_handler(SIGINT, on_termination, kFlags);
}

int termination_signal() { return g_termination_signal; }

Watchdog::Watchdog(Seconds allowed, ExitCode code, const std::string& message) {
  g_last_words = "error: " + message + "\n";
  g_exit_code = static_cast<int>(code);
  set_handler(SIGALRM, on_alarm, SA_RESTART);
  set_timer(allowed);
}

Watchdog::~Watchdog() {
  set_timer(Seconds(0));
  set_handler(SIGALRM, SIG_DFL, 0);
}

}  // namespace awex
