#include "attach/library/find_rank.hpp"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/hex.hpp"
#include "base/log.hpp"
#include "base/node_identity.hpp"
#include "base/private_directory.hpp"
#include "model/json_fields.hpp"

namespace awex::attach {
namespace {

constexpr auto kPause = std::chrono::milliseconds(20);
/// When a wait is told on stderr, at first and then again.
constexpr Seconds kFirstWord{3};
constexpr Seconds kNextWord{60};
constexpr const char* kNoRankHint =
    "start the job first: mpirun … awex-colocate serve --job DIR --attach trainer,inference; one "
    "without --attach has no rank that waits";
constexpr const char* kOtherRankHint =
    "attach to a rank that waits, by its role and device (LOCAL_RANK), on its host; serve --attach "
    "says whose engines a job takes; where the rank has ended, start the job again";

/// "inference on gpu 8f3c…", "trainer number 2".
std::string describe(Role role, const std::optional<GpuUuid>& gpu, int device) {
  return gpu ? fmt::format("{} on GPU {}", role_name(role), hex_of(*gpu))
             : fmt::format("{} number {}", role_name(role), device);
}

std::string describe(const EngineRecord& record) {
  const bool is_host = record.backend == "host";
  return describe(record.role, is_host ? std::nullopt : std::optional(record.uuid), record.device);
}

/// Why a record is not that of the rank that is wanted; empty where it is.
std::string mismatch(const EngineRecord& record, const RankWanted& wanted,
                     const NodeIdentity& here) {
  const bool same_boot =
      record.boot_id.empty() || here.boot.front() == '\0' || record.boot_id == text_of(here.boot);
  if (record.host != here.name() || !same_boot) {
    return fmt::format("rank {} is on host {}, this engine on host {}", record.rank, record.host,
                       here.name());
  }
  const auto space = own_pid_namespace();
  if (record.pid_namespace != 0 && space != 0 && record.pid_namespace != space) {
    return fmt::format("rank {} on this host is in another PID namespace (container)", record.rank);
  }
  const bool is_host = record.backend == "host";
  if (is_host && wanted.gpu) {
    return fmt::format("rank {} runs on the host backend, which has no GPU {}", record.rank,
                       hex_of(*wanted.gpu));
  }
  if (!is_host && !wanted.gpu) {
    return fmt::format("rank {} waits for {}, and no GPU was named", record.rank, describe(record));
  }
  const bool fits = record.role == wanted.role &&
                    (is_host ? record.device == wanted.device : record.uuid == *wanted.gpu);
  return fits ? "" : fmt::format("rank {} waits for {}", record.rank, describe(record));
}

/// The rank's socket; not valid, and `failure` says why, where nobody listens.
UniqueFd connect_to(const EngineRecord& record, std::string& failure) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (record.socket.size() >= sizeof(address.sun_path)) {
    throw request_error(fmt::format("the record of rank {} names no socket", record.rank));
  }
  record.socket.copy(static_cast<char*>(address.sun_path), record.socket.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) throw errno_error("reach the rank", "socket", errno);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    return socket;
  }
  failure = fmt::format(
      "rank {} (pid {}) does not listen at \"{}\": {}: it has ended, or its /tmp "
      "is another container's",
      record.rank, record.pid, record.socket, std::strerror(errno));
  return {};
}

/// What the job's own record tells of its end; empty where it tells none.
std::string end_of_job(const std::string& directory) {
  try {
    std::ifstream file(directory + "/job.json");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    if (text.empty()) return "no job has begun there";
    const auto parsed = parse_json(text, "job.json");
    JsonFields fields(parsed, "job.json");
    const auto ended_at = fields.text("ended_at");
    if (ended_at.empty()) return {};
    return fmt::format("the job there ended {}: {}", ended_at, fields.text("end"));
  } catch (const Error&) {
    return {};
  }
}

/// What there is in place of the rank.
std::string what_is_there(const RankWanted& wanted, const std::vector<std::string>& others) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(wanted.job, ignored)) return "there is no such directory";
  if (others.empty()) {
    const auto end = end_of_job(wanted.job);
    return end.empty() ? "no rank there waits for an engine" : end;
  }
  constexpr size_t kMostShown = 8;
  auto shown = others;
  std::sort(shown.begin(), shown.end());
  const size_t left = shown.size() > kMostShown ? shown.size() - kMostShown : 0;
  shown.resize(shown.size() - left);
  const auto more = left == 0 ? "" : fmt::format("; and {} more", left);
  return fmt::format("{}{}", fmt::join(shown, "; "), more);
}

}  // namespace

GpuUuid parse_gpu_uuid(std::string_view text) {
  std::string digits(text);
  if (digits.rfind("GPU-", 0) == 0 || digits.rfind("MIG-", 0) == 0) digits.erase(0, 4);
  std::erase(digits, '-');
  const auto uuid = bytes_of_hex<GpuUuid().size()>(digits);
  if (!uuid) {
    throw request_error(fmt::format("{} is no GPU's UUID", in_quotes(text)),
                        "nvidia-smi -L shows them: GPU-8f3c…, 32 hex digits");
  }
  return *uuid;
}

std::string find_job() {
  constexpr const char* kVariable = "AWEX_COLOCATE_JOB";
  const char* named = std::getenv(kVariable);
  if (named != nullptr && *named != '\0') return named;
  const auto jobs = private_directory_targets();
  if (jobs.size() == 1) {
    log::note(fmt::format("the engine attaches to the job at \"{}\", the only one here", jobs[0]));
    return jobs[0];
  }
  const auto hint = fmt::format("say which: the DIR of serve --job DIR, or set {}", kVariable);
  if (jobs.empty()) {
    throw request_error("no job was named, and none of this user waits for engines here", hint);
  }
  throw request_error(fmt::format("no job was named, and {} of this user wait for engines here: {}",
                                  jobs.size(), fmt::join(jobs, ", ")),
                      hint);
}

FoundRank find_rank(const RankWanted& wanted, const Deadline& deadline) {
  const auto here = read_node_identity();
  Deadline silence(kFirstWord);
  while (true) {
    std::vector<std::string> others;
    for (const auto& record : read_engine_records(wanted.job)) {
      auto why = mismatch(record, wanted, here);
      if (why.empty()) {
        auto socket = connect_to(record, why);
        if (socket.valid()) return {record, std::move(socket)};
      }
      others.push_back(std::move(why));
    }
    if (deadline.expired()) {
      throw Error(
          ExitCode::kDeadline,
          fmt::format("no rank waits at \"{}\" for {} after {}: {}", wanted.job,
                      describe(wanted.role, wanted.gpu, wanted.device),
                      format_seconds(deadline.allowed().count()), what_is_there(wanted, others)),
          others.empty() ? kNoRankHint : kOtherRankHint);
    }
    if (silence.expired()) {
      log::note(fmt::format(
          "the {} engine waits for its rank at \"{}\", {} at most: {}", role_name(wanted.role),
          wanted.job, format_seconds(deadline.allowed().count()), what_is_there(wanted, others)));
      silence = Deadline(kNextWord);
    }
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace awex::attach
