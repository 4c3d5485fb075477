#pragma once

#include <functional>
#include <string>
#include <utility>

#include "base/wait.hpp"
#include "cli/client_options.hpp"
#include "cli/publish.hpp"
#include "serve/job_directory.hpp"
#include "serve/protocol.hpp"

namespace awex {

/// Asks a resident job for something: progress on stderr, the job's report on stdout and in the
/// files. Returns the command's exit code, or 128 + the signal by which its user has left.
[[nodiscard]] ExitCode run_client(const ClientTask& task);

// Its parts, for clients that ask more than once.

/// What a client does first: it notes signals, and learns how much to say.
void begin_client(const ClientTask& task);

/// Lets a client's user leave: throws an error with exit code 128 + the signal once SIGINT or
/// SIGTERM has come. It says what becomes of what the job was asked for.
class LeaveMonitor final : public WaitMonitor {
 public:
  /// `request` must outlive it. `tick` is called in every poll; null for nothing.
  explicit LeaveMonitor(const ClientRequest& request, std::function<void()> tick = {})
      : request_(request), tick_(std::move(tick)) {}

  void poll() override;
  /// The job has answered, and so knows of the request.
  void job_has_answered() { answered_ = true; }
  [[nodiscard]] bool answered() const { return answered_; }

 private:
  const ClientRequest& request_;
  std::function<void()> tick_;
  bool answered_ = false;
};

/// A report of the client's own: of what has failed before the job could render one.
[[nodiscard]] Report client_report(const ClientTask& task, const Error& error);
/// That, as the outputs have it.
[[nodiscard]] CommandEnd failed_end(const ClientTask& task, const Error& error,
                                    const ReportFiles& files);
/// What the files hold while the job works.
[[nodiscard]] Error not_heard_yet();

/// What stdout carries of a status.
[[nodiscard]] std::string status_text(const ClientTask& task, const Event& event);

}  // namespace awex
