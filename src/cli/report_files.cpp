#include "cli/report_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "cli/render_json.hpp"
#include "cli/render_trace.hpp"

namespace awex {
namespace {

/// Pipes and terminals take one report only, the last.
bool can_be_replaced(int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

}  // namespace

void write_all(int fd, const std::string& text, const std::string& where) {
  size_t written = 0;
  while (written < text.size()) {
    const auto count = ::write(fd, text.data() + written, text.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw errno_error(fmt::format("write the report to {}", where), "write", errno);
    written += static_cast<size_t>(count);
  }
}

void ReportFiles::open(const std::string& json_path, const std::string& trace_path,
                       const Report& unfinished) {
  if (!json_path.empty() && json_path != "-") open_file(json_path, render_json);
  if (!trace_path.empty()) open_file(trace_path, render_trace);
  for (const auto& file : files_) {
    if (can_be_replaced(file.fd.get())) replace(file, file.render(unfinished));
  }
}

void ReportFiles::open_file(const std::string& path, std::string (*render)(const Report&)) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
  if (!fd.valid()) {
    throw request_error(
        fmt::format("cannot write the report to \"{}\": {}", path, std::strerror(errno)),
        "name a file in a directory that exists and that you may write to");
  }
  files_.push_back({path, std::move(fd), render});
}

void ReportFiles::write(const Report& report) {
  for (const auto& file : files_) replace(file, file.render(report));
}

void ReportFiles::replace(const File& file, const std::string& text) {
  if (can_be_replaced(file.fd.get())) {
    if (::ftruncate(file.fd.get(), 0) != 0) {
      throw errno_error(fmt::format("replace the report in \"{}\"", file.path), "ftruncate", errno);
    }
    if (::lseek(file.fd.get(), 0, SEEK_SET) != 0) {
      throw errno_error(fmt::format("replace the report in \"{}\"", file.path), "lseek", errno);
    }
  }
  write_all(file.fd.get(), text, fmt::format("\"{}\"", file.path));
}

}  // namespace awex
