#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/unique_fd.hpp"

namespace awex {

/// A regular file open for reading. Reads go by position, so several threads may read at once; they
/// copy instead of mapping the file, because a mapped file that shrinks or whose disk fails kills
/// the process with SIGBUS instead of giving an error.
class InputFile {
 public:
  /// Throws a request error when the file is missing, unreadable or not a regular file.
  explicit InputFile(const std::filesystem::path& path);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

  /// Fills `out` from byte `offset` on. Throws a run-time error when the disk fails or the file has
  /// become shorter than it was when opened.
  void read(uint64_t offset, std::span<std::byte> out) const;

 private:
  std::string name_;
  UniqueFd fd_;
  uint64_t bytes_ = 0;
};

/// The hash of a file's bytes from `offset` on; those of parts that follow each other add up to
/// that of the whole.
[[nodiscard]] uint64_t hash_of_part(uint64_t offset, std::span<const std::byte> bytes);

/// Throws a request error if the file is what git leaves of a large file that git-lfs has not
/// fetched: a text of three lines.
void refuse_lfs_pointer(const InputFile& file);

/// The whole text of a file, no git-lfs pointer, of at most `max_bytes`; a larger one is a request
/// error.
[[nodiscard]] std::string read_text(const std::filesystem::path& path, uint64_t max_bytes);

}  // namespace awex
