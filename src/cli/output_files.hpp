#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "base/units.hpp"

namespace awex {

/// How long a reader (of a FIFO, a pipe) may take nothing, and what is asked meanwhile.
struct Patience {
  Seconds longest{30};
  std::function<void()> poll;  ///< May throw; null for nothing.
};

/// What --json names: "-" for the names of this process's own stdout (/dev/stdout), whose report
/// takes the table's place there; else the path.
[[nodiscard]] std::string report_path(const std::string& text);

/// What the files of one moment hold.
struct OutputTexts {
  std::string json;
  std::string trace;
};

/// The files that a command's outputs go to. They hold the truth from `open` on: an unfinished
/// report, until `write` replaces it. A regular file is replaced as a whole, through a file beside
/// it, so that it is never empty; where its directory allows no such file it is written in place,
/// with a warning. FIFOs and devices take one text, the last.
class OutputFiles {
 public:
  OutputFiles() = default;

  /// Opens the files (an empty path or "-" means none) and writes `unfinished`. Throws a request
  /// error for a path that cannot be written, and Error(kDeadline) for a FIFO that nobody reads.
  void open(const std::string& json_path, const std::string& trace_path,
            const OutputTexts& unfinished, Patience patience = {});

  /// Whether a file takes the texts' `json` or `trace`.
  [[nodiscard]] bool take(std::string OutputTexts::*text) const;
  /// From now on readers may take nothing for so long.
  void be_patient(Patience patience) { patience_ = std::move(patience); }

  /// Replaces what the regular files hold; FIFOs and devices wait for `write`.
  void update(const OutputTexts& texts);
  /// Replaces what all files hold. Throws an error that names the file; Error(kDeadline) for a
  /// reader that takes nothing.
  void write(const OutputTexts& texts);

 private:
  struct File {
    std::string path;    ///< As given, for errors.
    std::string target;  ///< The regular file that it names; empty for others.
    UniqueFd fd;         ///< Of a file that cannot be replaced.
    std::string OutputTexts::*text;
  };

  void open_file(const std::string& path, std::string OutputTexts::*text);
  void write_to(File& file, const std::string& text);
  void replace(File& file, const std::string& text);

  std::vector<File> files_;
  Patience patience_;
};

/// Writes all of `text` to a descriptor. Throws a run-time error that names `where`, and
/// Error(kDeadline) when nothing is taken for the longest patience.
void write_all(int fd, const std::string& text, const std::string& where,
               const Patience& patience = {});

}  // namespace awex
