#include "serve/job_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include "base/build_identity.hpp"
#include "base/error.hpp"
#include "base/json_values.hpp"
#include "base/log.hpp"
#include "base/node_identity.hpp"
#include "base/private_directory.hpp"
#include "base/process_activity.hpp"
#include "base/utc_now.hpp"
#include "base/wait.hpp"
#include "base/whole_file.hpp"
#include "model/json_fields.hpp"
#include "model/json_input.hpp"

namespace awex {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRecordName = "job.json";
constexpr size_t kLongestRecord = 64 << 10;
/// How long another job's start at the same directory may take.
constexpr Seconds kOthersStart{5};

std::string record_path(const std::string& directory) { return directory + "/" + kRecordName; }

/// A request error, as the user has named the directory.
Error cannot(const std::string& attempt, int error_number, std::string hint = {}) {
  return request_error(
      fmt::format("cannot {}: {} ({})", attempt, std::strerror(error_number), error_number),
      hint.empty() ? "name a directory that you may write to" : std::move(hint));
}

std::string encode_record(const JobRecord& record) {
  const Json json = {
      {"schema_version", 1},
      {"host", record.host},
      {"boot_id", text_or_null(record.boot_id)},
      {"pid", record.pid},
      {"socket", record.socket},
      {"build", record.build},
      {"started_at", record.started_at},
      {"ended_at", text_or_null(record.ended_at)},
      {"end", text_or_null(record.end)},
      {"exit_code", record.exit_code ? Json(static_cast<int>(*record.exit_code)) : Json()}};
  return indented_text(json);
}

JobRecord decode_record(const std::string& text, const std::string& where) {
  const auto parsed = parse_json(text, where);
  JsonFields fields(parsed, where);
  if (fields.count("schema_version") != 1) {
    throw fields.is_not("schema_version", parsed.at("schema_version"), "1");
  }
  JobRecord record;
  record.host = fields.text("host");
  record.boot_id = fields.text("boot_id");
  const auto pid = fields.count("pid");
  if (pid == 0 || pid > (1U << 30)) throw fields.is_not("pid", parsed.at("pid"), "a process");
  record.pid = static_cast<int>(pid);
  record.socket = fields.text("socket");
  record.build = fields.text("build");
  record.started_at = fields.text("started_at");
  record.ended_at = fields.text("ended_at");
  record.end = fields.text("end");
  if (fields.find("exit_code") != nullptr) record.exit_code = fields.exit_code("exit_code");
  return record;
}

/// The record's file, not valid where there is none. A symbolic link or a FIFO is none.
UniqueFd open_record(const std::string& directory, int flags) {
  const auto path = record_path(directory);
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd.valid()) {
    if (errno == ENOENT) return {};
    throw cannot(fmt::format("read the job's record \"{}\"", path), errno,
                 errno == ENOTDIR ? "name a directory" : "see whether it is yours (ls -l)");
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    throw request_error(fmt::format("\"{}\" is no plain file, and so no job's record", path),
                        "name another directory, or remove it");
  }
  return fd;
}

JobRecord read_record(const UniqueFd& fd, const std::string& directory) {
  const auto path = record_path(directory);
  const auto text = read_from_start(fd.get(), kLongestRecord + 1);
  if (!text) throw cannot(fmt::format("read the job's record \"{}\"", path), errno);
  try {
    if (text->size() > kLongestRecord) {
      throw request_error(fmt::format("\"{}\" is too long", path));
    }
    return decode_record(*text, fmt::format("\"{}\"", path));
  } catch (const Error& error) {
    throw request_error(fmt::format("{}: no job has written this", error.what()),
                        "name another directory, or remove that file");
  }
}

/// A new file beside the record, whole and on the disk, that takes its place or vanishes.
class NewRecord {
 public:
  NewRecord(const std::string& directory, const JobRecord& record)
      : target_(record_path(directory)), path_(target_ + ".XXXXXX") {
    fd_ = UniqueFd(::mkostemp(path_.data(), O_CLOEXEC));
    if (!fd_.valid()) throw cannot(fmt::format("write into \"{}\"", directory), errno);
    try {
      write(encode_record(record));
    } catch (...) {
      ::unlink(path_.c_str());
      throw;
    }
  }
  NewRecord(const NewRecord&) = delete;
  NewRecord& operator=(const NewRecord&) = delete;
  NewRecord(NewRecord&&) = delete;
  NewRecord& operator=(NewRecord&&) = delete;
  ~NewRecord() {
    if (!moved_) ::unlink(path_.c_str());
  }

  [[nodiscard]] uid_t owner() const {
    struct stat status {};
    return ::fstat(fd_.get(), &status) == 0 ? status.st_uid : ::geteuid();
  }

  /// False where there is a record already.
  [[nodiscard]] bool publish_first() {
    if (::link(path_.c_str(), target_.c_str()) == 0) return true;
    if (errno == EEXIST) return false;
    publish();  // a file system without links
    return true;
  }
  void publish() {
    if (::rename(path_.c_str(), target_.c_str()) != 0) {
      throw cannot(fmt::format("write the job's record \"{}\"", target_), errno);
    }
    moved_ = true;
  }

 private:
  void write(const std::string& text) {
    if (!write_from_start(fd_.get(), text) || ::fchmod(fd_.get(), 0644) != 0 ||
        ::fsync(fd_.get()) != 0) {
      throw failed();
    }
  }
  [[nodiscard]] Error failed() const {
    return cannot(fmt::format("write the job's record \"{}\"", target_), errno,
                  "make room there (df -h), or name another directory");
  }

  std::string target_;
  std::string path_;
  UniqueFd fd_;
  bool moved_ = false;
};

std::string private_directory_of(const JobRecord& record) {
  const auto slash = record.socket.rfind('/');
  return slash == std::string::npos ? std::string() : record.socket.substr(0, slash);
}

/// Seconds since 1970 of "2026-11-27T10:00:00Z".
std::optional<int64_t> utc_seconds(const std::string& text) {
  tm time{};
  const char* end = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%SZ", &time);
  if (end == nullptr || *end != '\0') return std::nullopt;
  return ::timegm(&time);
}

/// When a process began that still runs, in seconds since 1970; nothing where there is none. One
/// that has ended and that nobody has waited for has a pid still.
std::optional<int64_t> begin_of_process(int pid) {
  std::string line;
  int64_t boot_time = -1;
  for (std::ifstream file("/proc/stat"); std::getline(file, line);) {
    if (line.rfind("btime ", 0) == 0) boot_time = std::strtoll(line.c_str() + 6, nullptr, 10);
  }
  try {
    const auto stat = process_stat_of(pid);
    if (boot_time < 0 || !stat || stat->has_ended()) return std::nullopt;
    return boot_time + static_cast<int64_t>(stat->start_time) / ::sysconf(_SC_CLK_TCK);
  } catch (const Error&) {  // Another user's, which /proc may hide: not the job's.
    return std::nullopt;
  }
}

/// Whether there is a process of the job's pid that is as old as the job.
bool has_process(const JobRecord& record) {
  const auto process = begin_of_process(record.pid);
  const auto job = utc_seconds(record.started_at);
  constexpr int kRounding = 2;
  return process && (!job || *process <= *job + kRounding);
}

/// Makes the directory and those above it.
std::string take_directory(const std::string& path) {
  if (path.empty()) throw request_error("the job's directory has no name", "name one: --job DIR");
  std::error_code failure;
  fs::create_directories(path, failure);
  if (failure) throw cannot(fmt::format("make the directory \"{}\"", path), failure.value());
  const auto absolute = fs::canonical(path, failure);
  if (failure) throw cannot(fmt::format("find the directory \"{}\"", path), failure.value());
  if (!fs::is_directory(absolute, failure)) {
    throw request_error(fmt::format("\"{}\" is no directory", path), "name one: --job DIR");
  }
  return absolute.string();
}

/// Files of this user have another owner on some file systems, the same for all.
void check_owner(const std::string& directory, const NewRecord& mine) {
  struct stat status {};
  if (::stat(directory.c_str(), &status) != 0) {
    throw cannot(fmt::format("look at the directory \"{}\"", directory), errno);
  }
  if (::geteuid() == 0 || status.st_uid == mine.owner()) return;
  throw request_error(fmt::format("the directory \"{}\" belongs to another user (uid {})",
                                  directory, status.st_uid),
                      "name one of your own: --job DIR");
}

void refuse_living(const JobRecord& record, const std::string& directory) {
  if (!record.ended_at.empty()) return;
  const auto path = record_path(directory);
  if (!is_of_this_host(record)) {
    throw request_error(
        fmt::format("a job of pid {} on host {}, begun {}, serves at \"{}\": it has not said that "
                    "it ended",
                    record.pid, record.host, record.started_at, directory),
        fmt::format("stop it on host {}, or name another directory; when that job or host is gone, "
                    "remove \"{}\"",
                    record.host, path));
  }
  if (!job_lives(record)) return;
  throw request_error(fmt::format("a job of pid {}, begun {}, serves at \"{}\" already", record.pid,
                                  record.started_at, directory),
                      "stop it first (awex-colocate stop --job DIR), or name another directory");
}

/// Waits while another job begins or ends here. File systems without locks go without.
void lock_record(const UniqueFd& record, const std::string& directory) {
  const Deadline deadline(kOthersStart);
  while (::flock(record.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) return;
    if (deadline.expired()) {
      throw request_error(
          fmt::format("\"{}\" has been locked by another program for {}", record_path(directory),
                      format_seconds(deadline.allowed().count())),
          "see which (fuser), or name another directory");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

bool is_current(const UniqueFd& record, const std::string& directory) {
  struct stat opened {};
  struct stat named {};
  return ::fstat(record.get(), &opened) == 0 &&
         ::stat(record_path(directory).c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

bool is_same_job(const JobRecord& a, const JobRecord& b) {
  return a.host == b.host && a.boot_id == b.boot_id && a.pid == b.pid && a.socket == b.socket &&
         a.started_at == b.started_at;
}

/// Puts the record into the directory, unless a job serves there; one at a time. Returns what was
/// there before.
std::optional<JobRecord> publish(const std::string& directory, const JobRecord& record) {
  while (true) {
    NewRecord mine(directory, record);
    check_owner(directory, mine);
    const auto current = open_record(directory, O_RDWR);
    if (!current.valid()) {
      if (mine.publish_first()) return std::nullopt;
      continue;
    }
    lock_record(current, directory);
    if (!is_current(current, directory)) continue;
    auto former = read_record(current, directory);
    refuse_living(former, directory);
    mine.publish();
    return former;
  }
}

/// Writes a record's end, where the directory still tells of that job.
void publish_end(const std::string& directory, const JobRecord& ended) {
  const auto now = read_job_record(directory);
  if (now && is_same_job(*now, ended)) NewRecord(directory, ended).publish();
}

}  // namespace

bool is_of_this_host(const JobRecord& record) {
  const auto here = read_node_identity();
  return record.host == here.name();
}

bool job_lives(const JobRecord& record) {
  const auto here = read_node_identity();
  const auto boot = text_of(here.boot);
  if (!record.boot_id.empty() && !boot.empty() && record.boot_id != boot) return false;
  const auto directory = open_directory(private_directory_of(record));
  if (directory.valid()) {
    return ::flock(directory.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  }
  // It is another user's, or in a /tmp of another container or batch job, or was removed.
  return record.pid != ::getpid() && has_process(record);
}

JobDirectory::JobDirectory(const std::string& path)
    : path_(take_directory(path)), private_(make_private_directory()) {
  try {
    const auto node = read_node_identity();
    record_.host = node.name();
    record_.boot_id = text_of(node.boot);
    record_.pid = ::getpid();
    record_.socket = private_socket_path(private_.path);
    record_.build = build_identity();
    record_.started_at = utc_now();
    former_ = publish(path_, record_);
    if (former_ && is_of_this_host(*former_))
      remove_private_directory(private_directory_of(*former_));
  } catch (...) {
    remove_private_directory(private_.path);
    throw;
  }
}

JobDirectory::~JobDirectory() { remove_private_directory(private_.path); }

void JobDirectory::write_end(const std::string& end, std::optional<ExitCode> code) {
  record_.ended_at = utc_now();
  record_.end = end;
  record_.exit_code = code;
  remove_private_directory(private_.path);
  publish_end(path_, record_);
}

void bury_job(const std::string& path, const std::string& private_directory,
              const std::string& end) noexcept {
  try {
    auto record = read_job_record(path);
    if (record && record->ended_at.empty() && private_directory_of(*record) == private_directory) {
      record->ended_at = utc_now();
      record->end = end;
      publish_end(path, *record);
    }
  } catch (const std::exception& error) {
    log::warning(fmt::format("the job's end is not written into \"{}\": {}", path, error.what()));
  }
  remove_private_directory(private_directory);
}

std::optional<JobRecord> read_job_record(const std::string& path) {
  const auto fd = open_record(path, O_RDONLY);
  if (!fd.valid()) return std::nullopt;
  return read_record(fd, path);
}

std::optional<JobRecord> read_again(const JobRecord& job, const std::string& path) {
  auto record = read_job_record(path);
  const bool is_same = record && record->socket == job.socket && record->pid == job.pid;
  return is_same ? std::move(record) : std::nullopt;
}

std::optional<JobRecord> end_of_job(const JobRecord& job, const std::string& path) {
  if (!job.ended_at.empty()) return job;
  if (!is_of_this_host(job) || job_lives(job)) return std::nullopt;
  // It writes its end before it lets go of its lock: perhaps since `job` was read.
  const auto last = read_again(job, path);
  return last ? last : job;
}

std::string describe(const JobRecord& record) {
  const auto job = fmt::format("a job of pid {} on host {}, begun {}", record.pid, record.host,
                               record.started_at);
  if (record.ended_at.empty()) return job + ", that ended without a word";
  return fmt::format("{}, that ended {}: {}", job, record.ended_at, record.end);
}

}  // namespace awex
