#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.hpp"
#include "base/private_directory.hpp"

namespace awex {

/// What a job's directory tells of the job that serves there, or served there last.
struct JobRecord {
  std::string host;        ///< Where rank 0 runs.
  std::string boot_id;     ///< Of that host's kernel.
  int pid = 0;             ///< Rank 0's.
  std::string socket;      ///< Path on that host.
  std::string build;       ///< build_identity().
  std::string started_at;  ///< ISO 8601, UTC.
  std::string ended_at;    ///< Empty while it runs, and for ever if it ended without a word.
  std::string end;         ///< How it ended: "stopped by a client", or an error's text.
  std::optional<ExitCode> exit_code;  ///< That its ranks ended with; absent where unknown.
};

/// The directory that names a resident job, on rank 0. It may be on a disk that hosts share, so it
/// holds the record alone (job.json, replaced as a whole); socket and lock are in a private
/// directory (0700, owned by this user) of this host, whose path is short whatever the first one's
/// is.
class JobDirectory {
 public:
  /// Takes a directory, which is made if need be. Throws a request error when a job serves there
  /// already (on this host: its lock is held; on another: it has not said that it ended, with what
  /// to do if it is dead), or when directories cannot be made or are others'.
  explicit JobDirectory(const std::string& path);
  JobDirectory(const JobDirectory&) = delete;
  JobDirectory& operator=(const JobDirectory&) = delete;
  JobDirectory(JobDirectory&&) = delete;
  JobDirectory& operator=(JobDirectory&&) = delete;
  /// Removes the private directory, if it is still there; writes no end.
  ~JobDirectory();

  [[nodiscard]] const JobRecord& record() const { return record_; }
  /// The job that served here before, if the directory tells of one.
  [[nodiscard]] const std::optional<JobRecord>& former() const { return former_; }
  /// Where socket and lock are. Anyone of this user on this host may remove it when rank 0 is lost.
  [[nodiscard]] const std::string& private_directory() const { return private_.path; }

  /// Writes into the record how the job ended, and the exit code of its ranks, and removes the
  /// private directory: nobody comes any more, also when the process is aborted next. Throws
  /// request errors.
  void write_end(const std::string& end, std::optional<ExitCode> code = std::nullopt);

 private:
  std::string path_;
  PrivateDirectory private_;
  JobRecord record_;
  std::optional<JobRecord> former_;
};

/// When rank 0 is lost: another rank of its host writes its end and removes what it has left.
/// Never throws.
void bury_job(const std::string& path, const std::string& private_directory,
              const std::string& end) noexcept;

/// What a directory tells; nothing where no job has ever served. Throws request errors for a
/// directory that cannot be read and for records that are none.
[[nodiscard]] std::optional<JobRecord> read_job_record(const std::string& path);

/// Whether a record is of a job on this host.
[[nodiscard]] bool is_of_this_host(const JobRecord& record);
/// Whether the job of a record, on this host, lives: its lock is held. A record that tells how the
/// job ended is not asked for.
[[nodiscard]] bool job_lives(const JobRecord& record);

/// The record of `job` as the directory has it now; nothing where it tells of another job, or none.
/// Throws as read_job_record does.
[[nodiscard]] std::optional<JobRecord> read_again(const JobRecord& job, const std::string& path);
/// How the job ended of which `job` was read at `path`; nothing while it runs, as far as this host
/// can tell: of one on another host only its own word counts. One that ended after it was read has
/// its last words in what is returned. Throws as read_job_record does.
[[nodiscard]] std::optional<JobRecord> end_of_job(const JobRecord& job, const std::string& path);

/// "a job of pid 4711 on host a, begun 2026-11-27T10:00:00Z, that ended without a word"
[[nodiscard]] std::string describe(const JobRecord& record);

}  // namespace awex
