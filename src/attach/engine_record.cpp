#include "attach/engine_record.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>

#include "base/error.hpp"
#include "base/hex.hpp"
#include "base/json_values.hpp"
#include "base/log.hpp"
#include "base/private_directory.hpp"
#include "base/unique_fd.hpp"
#include "base/whole_file.hpp"
#include "memory/gpu_uuid.hpp"
#include "model/json_fields.hpp"

namespace awex::attach {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFolder = "engines";
constexpr const char* kEnding = ".json";
constexpr size_t kLongestRecord = 64 << 10;
constexpr uint64_t kMostNumber = 1U << 30;

Error cannot(const std::string& attempt, int error_number) {
  return request_error(
      fmt::format("cannot {}: {} ({})", attempt, std::strerror(error_number), error_number),
      "the job's directory must be one that this user may write to (--job DIR)");
}

std::string folder_of(const std::string& job_directory) { return job_directory + "/" + kFolder; }

std::string path_of(const std::string& job_directory, const EngineRecord& record) {
  auto host = record.host;
  std::replace(host.begin(), host.end(), '/', '_');
  return fmt::format("{}/{}-{}-{}{}", folder_of(job_directory), host, role_name(record.role),
                     record.device, kEnding);
}

GpuUuid read_uuid(JsonFields& fields) {
  const auto text = fields.text("uuid");
  const auto uuid = bytes_of_hex<GpuUuid().size()>(text);
  if (!uuid || hex_of(*uuid) != text) {
    throw fields.is_not("uuid", fields.get("uuid"), "32 hex digits");
  }
  return *uuid;
}

int read_number(JsonFields& fields, const char* key) {
  const auto number = fields.count(key);
  if (number > kMostNumber) throw fields.is_not(key, fields.get(key), "a number that can be");
  return static_cast<int>(number);
}

std::string encode_record(const EngineRecord& record) {
  const Json json = {{"schema_version", 1},
                     {"job", record.job},
                     {"host", record.host},
                     {"boot_id", text_or_null(record.boot_id)},
                     {"pid_namespace", record.pid_namespace},
                     {"rank", record.rank},
                     {"pid", record.pid},
                     {"role", name_of(kNamedRoles, record.role)},
                     {"device", record.device},
                     {"uuid", hex_of(record.uuid)},
                     {"backend", record.backend},
                     {"socket", record.socket},
                     {"awaits", text_or_null(record.awaits)}};
  return indented_text(json);
}

EngineRecord decode_record(const std::string& text, const std::string& where) {
  const auto parsed = parse_json(text, where);
  JsonFields fields(parsed, where);
  if (fields.count("schema_version") != 1) {
    throw fields.is_not("schema_version", parsed.at("schema_version"), "1");
  }
  EngineRecord record;
  record.job = fields.text("job");
  record.host = fields.text("host");
  record.boot_id = fields.text("boot_id");
  record.pid_namespace = fields.count("pid_namespace");
  record.rank = read_number(fields, "rank");
  record.pid = read_number(fields, "pid");
  if (record.pid == 0) throw fields.is_not("pid", parsed.at("pid"), "a process");
  record.role = fields.choice("role", kNamedRoles);
  record.device = read_number(fields, "device");
  record.uuid = read_uuid(fields);
  record.backend = fields.text("backend");
  record.socket = fields.text("socket");
  record.awaits = fields.text("awaits");
  return record;
}

/// A new file that takes its place under `target` as a whole.
void replace_file(const std::string& target, const std::string& text) {
  const auto attempt = fmt::format("write the record \"{}\"", target);
  auto path = target + ".XXXXXX";
  const UniqueFd fd(::mkostemp(path.data(), O_CLOEXEC));
  if (!fd.valid()) throw cannot(attempt, errno);
  if (!write_from_start(fd.get(), text) || ::fchmod(fd.get(), 0644) != 0 ||
      ::fsync(fd.get()) != 0 || ::rename(path.c_str(), target.c_str()) != 0) {
    const int failure = errno;
    ::unlink(path.c_str());
    throw cannot(attempt, failure);
  }
}

/// The text of a plain file, nothing where it has gone. A symbolic link or a FIFO is none.
std::optional<std::string> read_file(const std::string& path) {
  const auto attempt = fmt::format("read the record \"{}\"", path);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd.valid()) {
    if (errno == ENOENT) return std::nullopt;
    throw cannot(attempt, errno);
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    throw request_error(fmt::format("\"{}\" is no plain file, and so no rank's record", path));
  }
  auto text = read_from_start(fd.get(), kLongestRecord + 1);
  if (!text) throw cannot(attempt, errno);
  if (text->size() > kLongestRecord) throw request_error(fmt::format("\"{}\" is too long", path));
  return text;
}

std::optional<EngineRecord> read_record(const std::string& path) {
  try {
    const auto text = read_file(path);
    if (!text) return std::nullopt;
    return decode_record(*text, fmt::format("\"{}\"", path));
  } catch (const Error& error) {
    throw request_error(fmt::format("{}: no rank has written this", error.what()),
                        error.hint().empty() ? "remove that file" : error.hint());
  }
}

/// Sorted, so that the same is said of them every time.
std::vector<std::string> record_paths(const std::string& folder) {
  std::error_code failure;
  std::vector<std::string> paths;
  fs::directory_iterator file(folder, failure);
  for (; !failure && file != fs::directory_iterator(); file.increment(failure)) {
    if (file->path().extension() == kEnding) paths.push_back(file->path().string());
  }
  if (failure && failure != std::errc::no_such_file_or_directory) {
    throw cannot(fmt::format("read the folder \"{}\"", folder), failure.value());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

void write_engine_record(const std::string& job_directory, const EngineRecord& record) {
  const auto folder = folder_of(job_directory);
  std::error_code failure;
  fs::create_directories(folder, failure);
  if (failure) throw cannot(fmt::format("make the folder \"{}\"", folder), failure.value());
  replace_file(path_of(job_directory, record), encode_record(record));
}

void remove_engine_record(const std::string& job_directory, const EngineRecord& record) noexcept {
  try {
    const auto path = path_of(job_directory, record);
    const auto there = read_record(path);
    // It may be another job's by now.
    if (there && there->socket == record.socket) ::unlink(path.c_str());
  } catch (const std::exception&) {
    return;  // who attaches finds nobody at the socket
  }
}

void bury_engine_records(const std::string& job_directory, const EngineRecord& mine,
                         const std::function<bool(const EngineRecord&)>& is_lost) noexcept {
  try {
    for (const auto& record : read_engine_records(job_directory)) {
      const bool is_near = record.host == mine.host && record.boot_id == mine.boot_id &&
                           record.pid_namespace == mine.pid_namespace;
      const auto directory = fs::path(record.socket).parent_path().string();
      if (!is_near || !((is_lost && is_lost(record)) || is_abandoned(directory))) continue;
      remove_private_directory(directory);
      remove_engine_record(job_directory, record);
    }
  } catch (const std::exception& error) {
    log::detail(error.what());  // who attaches finds nobody at such a socket
  }
}

std::vector<EngineRecord> read_engine_records(const std::string& job_directory) {
  std::vector<EngineRecord> records;
  for (const auto& path : record_paths(folder_of(job_directory))) {
    auto record = read_record(path);
    if (record) records.push_back(std::move(*record));
  }
  return records;
}

}  // namespace awex::attach
