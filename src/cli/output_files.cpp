#include "cli/output_files.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>

#include "base/log.hpp"
#include "base/wait.hpp"

namespace awex {
namespace {

bool is_regular(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

Error cannot_write(const std::string& path) {
  if (errno == EMFILE || errno == ENFILE) {
    return errno_error(fmt::format("write the report to \"{}\"", path), "open", errno);
  }
  return request_error(
      fmt::format("cannot write the report to \"{}\": {}", path, std::strerror(errno)),
      "name a file in a directory that exists and that you may write to");
}

void poll_in(const Patience& patience) {
  if (patience.poll) patience.poll();
}

/// Opens a FIFO once somebody reads it; anything else at once.
UniqueFd open_special(const std::string& path, const Patience& patience) {
  const Deadline deadline(patience.longest);
  while (true) {
    UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666));
    if (fd.valid()) return fd;
    if (errno != ENXIO) throw cannot_write(path);
    if (deadline.expired()) {
      throw Error(ExitCode::kDeadline,
                  fmt::format("nobody reads \"{}\", where the report goes, after {}", path,
                              format_seconds(patience.longest.count())),
                  "start its reader first, or name a plain file");
    }
    poll_in(patience);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

/// What a path names in the end: a symbolic link is followed, so that it stays one.
std::string target_of(const std::string& path) {
  std::error_code failure;
  const auto target = std::filesystem::weakly_canonical(path, failure);
  return failure ? path : target.string();
}

/// A new file beside the target, with its permissions, that vanishes unless it takes its place.
class Replacement {
 public:
  explicit Replacement(const std::string& target)
      : target_(target), path_(fmt::format("{}.{}.tmp", target, ::getpid())) {
    fd_ = UniqueFd(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    struct stat status {};
    if (!fd_.valid()) error_ = errno;
    if (fd_.valid() && ::stat(target.c_str(), &status) == 0) {
      [[maybe_unused]] const int kept = ::fchmod(fd_.get(), status.st_mode & 07777U);
    }
  }
  Replacement(const Replacement&) = delete;
  Replacement& operator=(const Replacement&) = delete;
  Replacement(Replacement&&) = delete;
  Replacement& operator=(Replacement&&) = delete;
  ~Replacement() {
    if (fd_.valid() && !published_) ::unlink(path_.c_str());
  }

  /// 0, or why it cannot be.
  [[nodiscard]] int error() const { return error_; }
  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Whether it has taken the target's place; a mounted file's cannot be taken.
  [[nodiscard]] bool publish() {
    published_ = ::rename(path_.c_str(), target_.c_str()) == 0;
    if (!published_) error_ = errno;
    return published_;
  }

 private:
  std::string target_;
  std::string path_;
  UniqueFd fd_;
  int error_ = 0;
  bool published_ = false;
};

}  // namespace

std::string report_path(const std::string& text) {
  for (const char* own : {"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}) {
    if (text == own) return "-";
  }
  return text;
}

void write_all(int fd, const std::string& text, const std::string& where,
               const Patience& patience) {
  size_t written = 0;
  Deadline deadline(patience.longest);
  while (written < text.size()) {
    // What `poll` promises to take without waiting is PIPE_BUF.
    pollfd ready{fd, POLLOUT, 0};
    if (::poll(&ready, 1, 10) == 0) {
      poll_in(patience);
      if (!deadline.expired()) continue;
      throw Error(ExitCode::kDeadline,
                  fmt::format("cannot write the report to {}: its reader has taken nothing for {}",
                              where, format_seconds(patience.longest.count())),
                  "let the reader go on, or write to a plain file");
    }
    const auto count =
        ::write(fd, text.data() + written, std::min<size_t>(text.size() - written, PIPE_BUF));
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count < 0) throw errno_error(fmt::format("write the report to {}", where), "write", errno);
    written += static_cast<size_t>(count);
    deadline = Deadline(patience.longest);
  }
}

void OutputFiles::open(const std::string& json_path, const std::string& trace_path,
                       const OutputTexts& unfinished, Patience patience) {
  patience_ = std::move(patience);
  if (!json_path.empty() && json_path != "-") open_file(json_path, &OutputTexts::json);
  if (!trace_path.empty()) open_file(trace_path, &OutputTexts::trace);
  update(unfinished);
}

void OutputFiles::open_file(const std::string& path, std::string OutputTexts::*text) {
  const bool is_there = ::access(path.c_str(), F_OK) == 0;
  if (is_there && !is_regular(path)) {
    files_.push_back({path, "", open_special(path, patience_), text});
    return;
  }
  // Whether it may be written is known before the work. A new file begins with its first report:
  // only where none can take its place it is there, empty, before.
  if (is_there || Replacement(target_of(path)).error() != 0) {
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666));
    if (!fd.valid()) throw cannot_write(path);
  }
  files_.push_back({path, target_of(path), {}, text});
}

bool OutputFiles::take(std::string OutputTexts::*text) const {
  return std::any_of(files_.begin(), files_.end(),
                     [text](const File& file) { return file.text == text; });
}

void OutputFiles::update(const OutputTexts& texts) {
  for (auto& file : files_) {
    if (!file.target.empty()) write_to(file, texts.*file.text);
  }
}

void OutputFiles::write(const OutputTexts& texts) {
  std::optional<Error> failure;
  for (auto& file : files_) {
    try {
      write_to(file, texts.*file.text);
    } catch (const Error& error) {
      if (!failure) failure = error;
      // The job has waited long enough.
      if (error.code() == ExitCode::kDeadline) patience_.longest = Seconds(0);
    }
  }
  if (failure) throw Error(*failure);
}

void OutputFiles::write_to(File& file, const std::string& text) {
  if (!file.target.empty()) return replace(file, text);
  write_all(file.fd.get(), text, fmt::format("\"{}\"", file.path), patience_);
}

void OutputFiles::replace(File& file, const std::string& text) {
  const auto where = fmt::format("\"{}\"", file.path);
  if (!file.fd.valid()) {
    Replacement replacement(file.target);
    if (replacement.error() == 0) {
      write_all(replacement.fd(), text, where, patience_);
      if (replacement.publish()) return;
    }
    log::warning(
        fmt::format("{} is written in place and may be cut off by a crash: no file can "
                    "take its place there: {}",
                    where, std::strerror(replacement.error())));
    file.fd = UniqueFd(::open(file.target.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    if (!file.fd.valid()) {
      throw errno_error(fmt::format("write the report to {}", where), "open", errno);
    }
  }
  // The new text first: a moment without any must not be.
  if (::lseek(file.fd.get(), 0, SEEK_SET) != 0) {
    throw errno_error(fmt::format("replace the report in {}", where), "lseek", errno);
  }
  write_all(file.fd.get(), text, where, patience_);
  if (::ftruncate(file.fd.get(), static_cast<off_t>(text.size())) != 0) {
    throw errno_error(fmt::format("replace the report in {}", where), "ftruncate", errno);
  }
}

}  // namespace awex
