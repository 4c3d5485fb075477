#pragma once

#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "cycle/report.hpp"

namespace awex {

/// The files a report is exported to. They are opened before the work, and hold the truth from then
/// on: an unfinished report, until `write` replaces it.
class ReportFiles {
 public:
  ReportFiles() = default;

  /// Opens the files (an empty path or "-" means none) and writes `unfinished`. Throws a request
  /// error for a path that cannot be written.
  void open(const std::string& json_path, const std::string& trace_path, const Report& unfinished);

  /// Replaces what the files hold. Throws a run-time error that names the file.
  void write(const Report& report);

 private:
  struct File {
    std::string path;
    UniqueFd fd;
    std::string (*render)(const Report&);
  };

  void open_file(const std::string& path, std::string (*render)(const Report&));
  static void replace(const File& file, const std::string& text);

  std::vector<File> files_;
};

/// Writes all of `text` to a descriptor. Throws a run-time error that names `where`.
void write_all(int fd, const std::string& text, const std::string& where);

}  // namespace awex
