#include "serve/client.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "base/node_identity.hpp"
#include "base/unique_fd.hpp"
#include "comm/process_watch.hpp"
#include "serve/job_directory.hpp"

namespace awex {
namespace {

constexpr int kPollMs = 10;
constexpr timeval kTurn{0, 10'000};
/// A job that lives but is busy with its clients is tried again for as long, at least.
constexpr Seconds kBusyPatience{5};
/// How long a job's survivors may take to write how it ended.
constexpr Seconds kLastWords{3};
constexpr Seconds kEnding{0.5};
/// A job's door answers at once, whatever its ranks do: one that says nothing for so long does not
/// work any more. So does a process that is stopped for as long; a debugger stops it for less.
constexpr Seconds kLongestSilence{30};
constexpr Seconds kLongestStop{10};
/// No event is longer; a job that sends more is another program.
constexpr size_t kLongestEvent = size_t{1} << 30;

void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(kPollMs)); }

/// An open connection, or why there is none.
struct Attempt {
  UniqueFd socket;
  int failure = 0;  ///< errno of the call that failed.
};

Attempt connect_to(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return {{}, ENAMETOOLONG};
  path.copy(static_cast<char*>(address.sun_path), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) throw errno_error("ask the job", "socket", errno);
  // Who waits in connect gets its turn before others that come later.
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &kTurn, sizeof(kTurn));
  const auto* plain = reinterpret_cast<const sockaddr*>(&address);
  if (::connect(socket.get(), plain, sizeof(address)) != 0) return {{}, errno};
  if (::fcntl(socket.get(), F_SETFL, O_NONBLOCK) != 0) {
    throw errno_error("ask the job", "fcntl", errno);
  }
  return {std::move(socket), 0};
}

/// Whoever answers there must be this user: others may have written the record.
void check_owner(const UniqueFd& socket, const std::string& directory) {
  ucred other{};
  socklen_t size = sizeof(other);
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &other, &size) != 0) {
    throw errno_error("learn whose the job is", "getsockopt", errno);
  }
  if (other.uid == ::geteuid()) return;
  throw request_error(
      fmt::format("the job at \"{}\" belongs to another user (uid {})", directory, other.uid),
      "only the user who has started a job may use it");
}

Error serves_elsewhere(const JobRecord& record, const std::string& directory) {
  return request_error(
      fmt::format("the job at \"{}\" serves on host {}, and this is host {}", directory,
                  record.host, read_node_identity().name()),
      fmt::format("do this on {}, where its rank 0 runs (ssh {})", record.host, record.host));
}

/// Why a job is not there, for the user.
Error no_job(const std::optional<JobRecord>& record, const std::string& directory, Errand errand) {
  if (!record) {
    return request_error(
        fmt::format("no job serves at \"{}\", and none ever has", directory),
        errand == Errand::kStop
            ? "see whether this is the --job of the one to stop"
            : "start one: mpirun … awex-colocate serve --job DIR …, and see its log");
  }
  return request_error(
      fmt::format("no job serves at \"{}\"; there was {}", directory, describe(*record)),
      errand == Errand::kStop ? "nothing is left to stop"
                              : "see its log for why it ended; start it anew: mpirun … "
                                "awex-colocate serve --job DIR …");
}

Error not_reached(const JobRecord& record, const std::string& directory, int failure) {
  if (failure == EACCES || failure == EPERM) {
    return request_error(
        fmt::format("the job at \"{}\" belongs to another user: connect to \"{}\": {} ({})",
                    directory, record.socket, std::strerror(failure), failure),
        "only the user who has started a job may use it");
  }
  return request_error(
      fmt::format("the job at \"{}\" (pid {}) lives, but cannot be reached: connect to \"{}\": {} "
                  "({})",
                  directory, record.pid, record.socket, std::strerror(failure), failure),
      "when its socket was removed, or this is another container, end it with kill -TERM");
}

/// A process may outlive the job's end a little.
bool has_ended(const JobRecord& job, const std::string& directory) {
  const auto record = read_again(job, directory);
  return !record || end_of_job(*record, directory);
}

/// Connects to the job, once there is one.
class Door {
 public:
  Door(const std::string& directory, Errand errand, Seconds patience, WaitMonitor& monitor)
      : directory_(directory),
        errand_(errand),
        patience_(patience),
        busy_(kBusyPatience),
        monitor_(monitor) {}

  [[nodiscard]] UniqueFd open() {
    while (true) {
      monitor_.poll();
      auto socket = try_open();
      if (socket.valid()) return socket;
      pause();
    }
  }
  /// The record of the job that was found.
  [[nodiscard]] const std::optional<JobRecord>& record() const { return record_; }
  [[nodiscard]] bool is_patient() const { return !busy_.expired(); }

 private:
  UniqueFd try_open() {
    const bool last = patience_.expired();
    record_ = read_job_record(directory_);
    if (!record_ || !record_->ended_at.empty()) {
      if (last) throw no_job(record_, directory_, errand_);
      return {};
    }
    if (!is_of_this_host(*record_)) throw serves_elsewhere(*record_, directory_);
    auto attempt = connect_to(record_->socket);
    if (attempt.socket.valid()) {
      check_owner(attempt.socket, directory_);
      return std::move(attempt.socket);
    }
    explain(attempt.failure, last);
    return {};
  }
  /// Returns where trying again makes sense.
  void explain(int failure, bool last) {
    if ((failure == EAGAIN || failure == EINTR) && (!last || is_patient())) return;
    if (failure == EACCES || failure == EPERM) throw not_reached(*record_, directory_, failure);
    if (!last) return;
    if (has_ended(*record_, directory_)) {
      throw no_job(read_job_record(directory_), directory_, errand_);
    }
    throw not_reached(*record_, directory_, failure);
  }

  const std::string& directory_;
  Errand errand_;
  Deadline patience_;
  Deadline busy_;
  WaitMonitor& monitor_;
  std::optional<JobRecord> record_;
};

/// Sees that a job does not answer any more, though it lives: then nothing else would end the wait.
class SilenceWatch {
 public:
  SilenceWatch(const JobRecord& record, const std::string& directory)
      : pid_(record.pid), directory_(directory) {}

  /// The job has said something.
  void heard() { first_word_.reset(); }
  /// Throws Error(kDeadline).
  void look() {
    if (first_word_ && first_word_->expired()) throw silent("says nothing", kLongestSilence);
    if (!is_stopped(pid_)) return stopped_.reset();
    if (!stopped_) stopped_.emplace(kLongestStop);
    if (stopped_->expired()) throw silent("is stopped", kLongestStop);
  }

 private:
  [[nodiscard]] Error silent(const char* how, Seconds time) const {
    return {ExitCode::kDeadline,
            fmt::format("rank 0 of the job at \"{}\", pid {}, {} for {}", directory_, pid_, how,
                        format_seconds(time.count())),
            fmt::format("kill -CONT {} lets a stopped process go on; gdb -p {} tells what it does",
                        pid_, pid_)};
  }

  int pid_;
  const std::string& directory_;
  std::optional<Deadline> first_word_{kLongestSilence};
  std::optional<Deadline> stopped_;
};

/// Lines of a connection.
class Conversation {
 public:
  Conversation(UniqueFd socket, const SilenceWatch& watch, WaitMonitor& monitor)
      : socket_(std::move(socket)), watch_(watch), monitor_(monitor) {}

  /// False when the other side has closed.
  [[nodiscard]] bool send(std::string_view text) {
    while (!text.empty()) {
      const auto count = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (count >= 0) {
        text.remove_prefix(static_cast<size_t>(count));
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        wait_for(POLLOUT);
      } else if (errno == EPIPE || errno == ECONNRESET) {
        return false;
      } else if (errno != EINTR) {
        throw errno_error("ask the job", "send", errno);
      }
    }
    return true;
  }

  /// The next line without its newline; nothing when the other side has closed.
  [[nodiscard]] std::optional<std::string> receive() {
    while (true) {
      const auto end = buffer_.find('\n', searched_);
      if (end != std::string::npos) return take_line(end);
      searched_ = buffer_.size();
      if (!read_more()) return std::nullopt;
    }
  }

 private:
  std::string take_line(size_t end) {
    watch_.heard();
    auto line = buffer_.substr(0, end);
    buffer_.erase(0, end + 1);
    searched_ = 0;
    return line;
  }
  bool read_more() {
    std::array<char, 64 << 10> piece;
    while (true) {
      const auto count = ::recv(socket_.get(), piece.data(), piece.size(), 0);
      if (count > 0) {
        buffer_.append(piece.data(), static_cast<size_t>(count));
        if (buffer_.size() <= kLongestEvent) return true;
        throw runtime_error(
            fmt::format("the job's answer is longer than {}", format_bytes(kLongestEvent)));
      }
      if (count == 0 || errno == ECONNRESET) return false;
      if (errno == EAGAIN || errno == EWOULDBLOCK) {
        wait_for(POLLIN);
      } else if (errno != EINTR) {
        throw errno_error("hear the job's answer", "recv", errno);
      }
    }
  }
  void wait_for(short what) {
    pollfd ready{socket_.get(), what, 0};
    if (::poll(&ready, 1, kPollMs) == 0) watch_.look();
    monitor_.poll();
  }

  UniqueFd socket_;
  SilenceWatch watch_;
  WaitMonitor& monitor_;
  std::string buffer_;
  size_t searched_ = 0;  ///< So far there is no newline.
};

/// A job that ends closes its connections a little before it lets go of its lock.
bool ends_within(Seconds longest, const JobRecord& record, const std::string& directory,
                 WaitMonitor& monitor) {
  const Deadline deadline(longest);
  while (!has_ended(record, directory)) {
    if (deadline.expired()) return false;
    monitor.poll();
    pause();
  }
  return true;
}

/// What is to be said of a job that has closed a connection without an answer. Waits a little for
/// its survivors to write how it ended.
Error without_answer(const JobRecord& asked, const std::string& directory, WaitMonitor& monitor) {
  const Deadline deadline(kLastWords);
  while (true) {
    const auto record = read_again(asked, directory);
    const bool told = record && !record->ended_at.empty();
    if (told || !record || deadline.expired()) {
      return {ExitCode::kPeerLost,
              fmt::format("the job at \"{}\" ended without an answer: it was {}", directory,
                          describe(record.value_or(asked))),
              "see its log; the trainer's state is as its processes left it"};
    }
    monitor.poll();
    pause();
  }
}

}  // namespace

Event ask_job(const std::string& directory, const ClientRequest& request, Seconds patience,
              const std::function<void(const Event&)>& hear, WaitMonitor& monitor) {
  Door door(directory, request.errand, patience, monitor);
  while (true) {
    auto socket = door.open();
    Conversation conversation(std::move(socket), SilenceWatch(*door.record(), directory), monitor);
    bool heard = false;
    // What the job has said before it closed is read all the same.
    [[maybe_unused]] const bool sent = conversation.send(encode(request));
    while (const auto line = conversation.receive()) {
      auto event = decode_event(*line);
      if (event.kind == Event::Kind::kDone) return event;
      heard = true;
      if (hear) hear(event);
    }
    const auto record = *door.record();
    if (ends_within(heard ? kEnding : Seconds(0), record, directory, monitor)) {
      throw without_answer(record, directory, monitor);
    }
    // Without a word a request was not taken, as a flood of others may cause.
    if (heard || !door.is_patient()) {
      throw runtime_error(
          fmt::format("the job at \"{}\" (pid {}) lives, but has closed the connection without an "
                      "answer",
                      directory, record.pid),
          "see what it does: awex-colocate status --job DIR");
    }
    pause();
  }
}

}  // namespace awex
