#include "attach/door.hpp"

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "attach/door_thread.hpp"
#include "base/log.hpp"

namespace awex::attach {
namespace {

/// How often a wait without an end tells that it goes on.
constexpr Seconds kTellInterval{0.1};

const char* deed_of(const ToEngine& request) {
  switch (request.kind) {
    case ToEngine::Kind::kMap:
      return "mapped";
    case ToEngine::Kind::kRelease:
      return "given up";
    case ToEngine::Kind::kCopied:
      return "let go what is copied of";
    default:
      return "taken the new version of";
  }
}

/// A wait which has no end of its own: the rank's record says what for, and others are told, from
/// time to time, that it goes on.
class Patience {
 public:
  /// `awaits`: as in the record.
  Patience(std::string what, std::string awaits, const std::string& job_directory,
           EngineRecord record, WaitMonitor& monitor)
      : what_(std::move(what)),
        awaits_(std::move(awaits)),
        job_directory_(job_directory),
        record_(std::move(record)),
        monitor_(monitor) {}

  void tell() {
    if (!told_) say(awaits_);
    if (!told_ || next_.expired()) monitor_.progressed({what_, "", 0, 0, false});
    if (!told_ || next_.expired()) next_ = Deadline(kTellInterval);
    told_ = true;
  }
  void end() {
    if (!told_) return;
    say("");
    monitor_.progressed({what_, "", 0, 0, true});
  }

 private:
  void say(const std::string& awaits) {
    record_.awaits = awaits;
    write_engine_record(job_directory_, record_);
  }

  std::string what_;
  std::string awaits_;
  const std::string& job_directory_;
  EngineRecord record_;
  WaitMonitor& monitor_;
  Deadline next_{kTellInterval};
  bool told_ = false;
};

}  // namespace

std::string Door::Shared::describe() const {
  if (engine_number == 0) return "no engine";
  return fmt::format("{} (pid {})", hello.name, pid);
}

std::string Door::Shared::who() const {
  return fmt::format("the {} engine of rank {}, {},", role_name(record.role), record.rank,
                     describe());
}

Error Door::Shared::lost_error() const {
  const auto hint = fmt::format("start one that attaches to {}", job_directory);
  if (engine_number == 0 || lost_at.empty()) {
    return {ExitCode::kPeerLost,
            fmt::format("no {} engine is attached to rank {}", role_name(record.role), record.rank),
            hint};
  }
  if (has_detached) {
    return {ExitCode::kPeerLost, fmt::format("{} has detached at {}", lost_who, lost_at), hint};
  }
  return {ExitCode::kPeerLost,
          fmt::format("{} is lost since {}{}", lost_who, lost_at,
                      why_lost.empty() ? "" : ": " + why_lost),
          hint};
}

void Door::Shared::send(const ToEngine& message, std::span<const int> fds, const Deadline& deadline,
                        WaitMonitor& monitor) {
  std::shared_ptr<Channel> engine;
  {
    const std::lock_guard guard(mutex);
    if (!is_here() || !channel) throw lost_error();
    engine = channel;
  }
  try {
    send_to(engine, message, fds, deadline, monitor);
  } catch (const Error& error) {
    // A part of a frame may be on its way: nothing could follow it.
    const std::lock_guard guard(mutex);
    const bool is_gone = error.code() == ExitCode::kPeerLost;
    if (channel == engine) note_loss(is_gone ? "" : error.what());
    if (is_gone) throw lost_error();
    throw;
  }
}

Door::Door(const std::string& job_directory, EngineRecord record, std::function<void()> wake)
    : shared_(std::make_unique<Shared>(job_directory, std::move(record), std::move(wake))) {}

Door::~Door() {
  ToEngine end;
  end.kind = ToEngine::Kind::kEnd;
  end.error = shared_->end;
  tell(end);
}

void Door::end_with(const Error& error) { shared_->end = error; }

Door::State Door::state() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->state;
}

ToRank Door::hello() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->hello;
}

std::string Door::describe() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->describe();
}

int Door::pid() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->pid;
}

std::string Door::describe_loss() const {
  const std::lock_guard guard(shared_->mutex);
  return fmt::format("{} {}", shared_->has_detached ? "detached" : "lost since", shared_->lost_at);
}

bool Door::has_detached() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->has_detached;
}

bool Door::is_ready() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->ready;
}

EngineWish Door::wish() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->ready && !shared_->in_command ? shared_->wish : EngineWish::kNone;
}

ControlPage& Door::page() { return shared_->page.page(); }

Error Door::lost_error() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->lost_error();
}

std::string Door::kept() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->kept;
}

void Door::await_hello(Seconds patience, WaitMonitor& monitor) {
  const Deadline deadline(patience);
  const auto& record = shared_->record;
  Patience going_on(fmt::format("waiting for an engine ({})", role_name(record.role)),
                    "an engine to attach", shared_->job_directory, record, monitor);
  for (uint64_t spins = 0;; ++spins) {
    {
      const std::lock_guard guard(shared_->mutex);
      if (shared_->is_here()) break;
    }
    monitor.poll();
    if (deadline.expired()) {
      throw Error(ExitCode::kDeadline,
                  fmt::format("no {} engine has attached to rank {} (host {}, device {}) in {}",
                              role_name(record.role), record.rank, record.host, record.device,
                              format_seconds(patience.count())),
                  fmt::format("start one that attaches to {}; --attach-timeout gives it longer",
                              shared_->job_directory));
    }
    going_on.tell();
    pause_in_wait(spins);
  }
  going_on.end();
}

void Door::welcome(ToEngine message, std::string_view kept, const Deadline& deadline,
                   WaitMonitor& monitor) {
  message.kind = ToEngine::Kind::kWelcome;
  message.kept_bytes = kept.size();
  std::vector<int> fds{shared_->page.fd()};
  UniqueFd blob;
  if (!kept.empty()) {
    blob = file_of_kept(kept);
    fds.push_back(blob.get());
  }
  {
    // First: what it says next may be there before the send returns.
    const std::lock_guard guard(shared_->mutex);
    if (shared_->state == State::kGreeted) shared_->state = State::kAttached;
    page().engine = shared_->engine_number;
  }
  shared_->send(message, fds, deadline, monitor);
}

void Door::refuse(const Error& error) noexcept {
  try {
    ToEngine message;
    message.kind = ToEngine::Kind::kRefused;
    message.error = error;
    NoMonitor nobody;
    shared_->send(message, {}, Deadline(kSlowestReader), nobody);
    const std::lock_guard guard(shared_->mutex);
    shared_->note_loss("it was refused: " + std::string(error.what()));
  } catch (const std::exception& failure) {
    log::warning(failure.what());
  }
}

std::optional<ToRank> Door::next_seal() {
  const std::lock_guard guard(shared_->mutex);
  return std::exchange(shared_->seal, std::nullopt);
}

Loan Door::take_loan() {
  const std::lock_guard guard(shared_->mutex);
  return std::exchange(shared_->loan, {});
}

uint64_t Door::booked_bytes() const {
  const std::lock_guard guard(shared_->mutex);
  uint64_t bytes = 0;
  for (const auto& [what, booked] : shared_->booked) bytes += std::min(booked, UINT64_MAX - bytes);
  return bytes;
}

ToRank Door::await_seal(Seconds patience, WaitMonitor& monitor) {
  const Deadline deadline(patience);
  Patience going_on(fmt::format("an engine loads ({})", role_name(shared_->record.role)),
                    fmt::format("{} to declare its tensors", describe()), shared_->job_directory,
                    shared_->record, monitor);
  for (uint64_t spins = 0;; ++spins) {
    if (auto seal = next_seal()) {
      going_on.end();
      return *seal;
    }
    {
      const std::lock_guard guard(shared_->mutex);
      if (!shared_->is_here() || shared_->state == State::kGreeted) throw shared_->lost_error();
    }
    monitor.poll();
    if (deadline.expired()) {
      const std::lock_guard guard(shared_->mutex);
      throw Error(ExitCode::kDeadline,
                  fmt::format("{} has not declared and sealed its tensors in {}", shared_->who(),
                              format_seconds(patience.count())),
                  "--attach-timeout gives it longer");
    }
    going_on.tell();
    pause_in_wait(spins);
  }
}

void Door::answer_seal(const std::optional<Error>& error, const Deadline& deadline,
                       WaitMonitor& monitor) {
  ToEngine message;
  message.kind = error ? ToEngine::Kind::kRefused : ToEngine::Kind::kSealed;
  message.error = error;
  if (!error) {
    const std::lock_guard guard(shared_->mutex);
    if (shared_->state == State::kAttached) shared_->state = State::kSealed;
  }
  shared_->send(message, {}, deadline, monitor);
}

void Door::await_ready(const Deadline& deadline, WaitMonitor& monitor,
                       const std::function<void()>& meanwhile) {
  for (uint64_t spins = 0;; ++spins) {
    {
      const std::lock_guard guard(shared_->mutex);
      if (!shared_->is_here()) throw shared_->lost_error();
      if (shared_->state == State::kSealed && shared_->ready) {
        shared_->in_command = true;
        return;
      }
    }
    monitor.poll();
    if (monitor.overdue(deadline)) {
      const std::lock_guard guard(shared_->mutex);
      throw Error(ExitCode::kDeadline,
                  fmt::format("{} is busy: it has called nothing that consents for {}",
                              shared_->who(), format_seconds(deadline.allowed().count())),
                  fmt::format("see what it does (py-spy dump --pid {}); it consents in hand_over, "
                              "take_back, wait, release or ready",
                              shared_->pid));
    }
    if (meanwhile) meanwhile();
    pause_in_wait(spins);
  }
}

void Door::use_consent() {
  const std::lock_guard guard(shared_->mutex);
  shared_->in_command = shared_->ready;
}

void Door::ask(const ToEngine& message, std::span<const int> fds, const Deadline& deadline,
               WaitMonitor& monitor) {
  uint64_t engine = 0;
  uint64_t number = 0;
  {
    const std::lock_guard guard(shared_->mutex);
    // One that waits for its welcome has none of what is asked about: that was the former one's.
    if (shared_->state == State::kGreeted) throw shared_->lost_error();
    engine = shared_->engine_number;
    number = ++shared_->asked;
  }
  shared_->send(message, fds, deadline, monitor);
  for (uint64_t spins = 0;; ++spins) {
    {
      const std::lock_guard guard(shared_->mutex);
      if (shared_->is_lost_since(engine)) throw shared_->lost_error();
      if (shared_->acked >= number) {
        if (shared_->ack_error) {
          throw Error(*shared_->ack_error).about_tag(tag_name(message.tag));
        }
        return;
      }
    }
    monitor.poll();
    if (monitor.overdue(deadline)) {
      const std::lock_guard guard(shared_->mutex);
      throw Error(ExitCode::kDeadline,
                  fmt::format("{} has not {} its {} for {}", shared_->who(), deed_of(message),
                              tag_name(message.tag), format_seconds(deadline.allowed().count())),
                  fmt::format("see what it does (py-spy dump --pid {})", shared_->pid));
    }
    pause_in_wait(spins);
  }
}

void Door::tell(const ToEngine& message) noexcept {
  try {
    {
      const std::lock_guard guard(shared_->mutex);
      if (!shared_->is_here()) return;
      if (message.kind == ToEngine::Kind::kOver) {
        // One that is in no call, or has consented since, would take it for the end of what it asks
        // for next.
        if (!shared_->in_command) return;
        // First: its next consent may be there before the send returns.
        shared_->ready = shared_->in_command = false;
        shared_->wish = EngineWish::kNone;
      }
    }
    NoMonitor nobody;
    shared_->send(message, {}, Deadline(kSlowestReader), nobody);
  } catch (const std::exception& error) {
    log::warning(error.what());
  }
}

}  // namespace awex::attach
