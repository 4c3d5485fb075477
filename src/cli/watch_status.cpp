#include "cli/watch_status.hpp"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <string>
#include <thread>
#include <utility>

#include "base/log.hpp"
#include "cli/client_command.hpp"
#include "cli/publish.hpp"
#include "cli/render_status.hpp"
#include "comm/signals.hpp"
#include "serve/client.hpp"

namespace awex {
namespace {

constexpr const char* kClearScreen = "\033[H\033[2J";

class Watch {
 public:
  explicit Watch(const ClientTask& task) : task_(task), leave_(task.request) {
    patience_.poll = [this] { leave_.poll(); };
  }

  /// Throws what ends it.
  [[noreturn]] void run(Seconds interval) {
    files_.open(task_.json_path, "", client_report(task_, not_heard_yet()), patience_);
    for (auto waits = task_.patience;; waits = Seconds(0)) {
      show(ask_job(task_.directory, task_.request, waits, {}, leave_));
      pause(interval);
    }
  }
  [[nodiscard]] bool has_shown() const { return !shown_.empty(); }
  [[nodiscard]] ReportFiles& files() { return files_; }

 private:
  void pause(Seconds interval) {
    for (const Deadline deadline(interval); !deadline.expired();) {
      leave_.poll();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  void show(const Event& event) {
    if (event.error) throw Error(*event.error);
    const bool redraws = is_terminal(STDOUT_FILENO) && task_.json_path != "-";
    auto lasting = lasting_status(event.status);
    const bool has_changed = lasting != shown_;
    if (has_changed) files_.write(OutputTexts{event.status, ""});
    if (has_changed || redraws) {
      const std::string between = redraws ? kClearScreen : has_shown() ? "\n" : "";
      write_all(STDOUT_FILENO, between + status_text(task_, event), "stdout", patience_);
    }
    shown_ = std::move(lasting);
  }

  const ClientTask& task_;
  LeaveMonitor leave_;
  ReportFiles files_;
  Patience patience_;
  std::string shown_;  ///< What lasts of it.
};

/// The end of the job that was there; nothing where it is there still.
std::optional<JobRecord> end_of_watched(const ClientTask& task) {
  const auto record = read_job_record(task.directory);
  return record ? end_of_job(*record, task.directory) : std::nullopt;
}

ExitCode end_watch(const ClientTask& task, Watch& watch, const Error& error) {
  if (termination_signal() == SIGINT) return ExitCode::kOk;
  const auto record = watch.has_shown() ? end_of_watched(task) : std::nullopt;
  if (!record) return publish(failed_end(task, error, watch.files()), watch.files(), {});
  if (record->exit_code == ExitCode::kOk) {
    log::note(fmt::format("the watch is over: it was {}", describe(*record)));
    return ExitCode::kOk;
  }
  const Error end(
      record->exit_code.value_or(ExitCode::kPeerLost),
      fmt::format("the job at \"{}\" has ended: it was {}", task.directory, describe(*record)),
      "see its log");
  return publish(failed_end(task, end, watch.files()), watch.files(), {});
}

}  // namespace

ExitCode watch_status(const ClientTask& task, Seconds interval) {
  begin_client(task);
  Watch watch(task);
  try {
    watch.run(interval);
  } catch (const Error& error) {
    return end_watch(task, watch, error);
  }
}

}  // namespace awex
