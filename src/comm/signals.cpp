#include "comm/signals.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <string_view>
#include <utility>

namespace awex {
namespace {

std::atomic<int> g_termination_signal{0};
std::atomic<int> g_termination_signals{0};
std::atomic<bool> g_interrupted{false};
std::atomic<int> g_status_signals{0};
std::atomic<void (*)(void*)> g_wake{nullptr};
std::atomic<void*> g_wake_context{nullptr};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<void*>::is_always_lock_free);

// What the watchdog's handler may touch: prepared before, because a handler must not allocate.
std::string g_last_words;
int g_exit_code = 1;
LastReport g_last_report;
std::string g_words_when_ended;
LastReport g_report_when_ended;

void write_from_handler(int fd, const std::string& text) {
  // A reader that has stopped must not hold it up.
  constexpr int kPatienceMs = 1000;
  pollfd ready{fd, POLLOUT, 0};
  if (::poll(&ready, 1, kPatienceMs) != 1) return;
  [[maybe_unused]] const auto written = ::write(fd, text.data(), text.size());
}

void wake() {
  const int error_number = errno;  // of what the signal has interrupted
  if (const auto function = g_wake.load()) function(g_wake_context);
  errno = error_number;
}

void on_status(int /*signal_number*/) {
  ++g_status_signals;
  wake();
}

void on_termination(int signal_number) {
  if (signal_number == SIGINT && g_interrupted.exchange(true)) {
    constexpr std::string_view kWords = "error: ended by a second SIGINT\n";
    [[maybe_unused]] const auto written = ::write(STDERR_FILENO, kWords.data(), kWords.size());
    ::signal(SIGINT, SIG_DFL);
    ::raise(SIGINT);  // it comes when this handler returns
    return;
  }
  int none = 0;
  g_termination_signal.compare_exchange_strong(none, signal_number);
  ++g_termination_signals;
  wake();
}

[[noreturn]] void end_with(const std::string& words, const LastReport& report, int code) {
  if (!words.empty()) write_from_handler(STDERR_FILENO, words);
  if (!report.path.empty()) {
    // A FIFO without a reader must not hold it up.
    const int fd =
        ::open(report.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC, 0666);
    if (fd >= 0) write_from_handler(fd, report.text);
  }
  ::_exit(code);
}

void on_alarm(int /*signal_number*/) { end_with(g_last_words, g_last_report, g_exit_code); }

void on_end(int /*signal_number*/) {
  end_with(g_words_when_ended, g_report_when_ended, static_cast<int>(ExitCode::kRuntime));
}

void set_handler(int signal_number, void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  ::sigaction(signal_number, &action, nullptr);
}

/// Who has started this process with `nohup` wants it to outlive the terminal.
bool is_ignored(int signal_number) {
  struct sigaction action {};
  return ::sigaction(signal_number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

void set_termination_handlers(void (*handler)(int)) {
  set_handler(SIGTERM, handler, SA_RESTART);
  set_handler(SIGINT, handler, SA_RESTART);
  if (!is_ignored(SIGHUP)) set_handler(SIGHUP, handler, SA_RESTART);
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
  set_termination_handlers(on_termination);
  set_handler(SIGPIPE, SIG_IGN, 0);
}

void end_at_once_on_signals(std::string words, LastReport report) {
  g_words_when_ended = std::move(words);
  g_report_when_ended = std::move(report);
  set_termination_handlers(on_end);
}

int termination_signal() { return g_termination_signal; }
int termination_signals() { return g_termination_signals; }

void note_status_signals() { set_handler(SIGUSR1, on_status, SA_RESTART); }
int status_signals() { return g_status_signals; }

void wake_on_signals(void (*wake)(void* context), void* context) {
  g_wake = nullptr;  // never the old function with the new context
  g_wake_context = context;
  g_wake = wake;
}

Watchdog::Watchdog(Seconds allowed, ExitCode code, const std::string& message, LastReport report) {
  g_last_report = std::move(report);
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
