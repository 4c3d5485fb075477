#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "model/safetensors.hpp"

namespace awex {

/// What tells a file of a checkpoint from another of the same name.
struct FileIdentity {
  std::string name;  ///< Within the checkpoint's directory.
  uint64_t bytes = 0;
  uint64_t head = 0;    ///< Hash of a JSON file's text, or of a safetensors file's header.
  uint64_t sample = 0;  ///< Hash of a part of the tensors' bytes; 0 for JSON.

  bool operator==(const FileIdentity&) const = default;
};

/// The identities of the files that are read of an open checkpoint: config.json, the index if there
/// is one, and its source's `files`, by name. Their headers are not read again. A file of at most
/// 64 MiB is hashed whole. Of larger ones a sample is read: 4 KiB from the middle of a tensor, of
/// every tensor where the whole checkpoint has at most about a thousand, else of tensors evenly
/// spread. Reads from all threads of `threads`. Throws what reading files throws.
[[nodiscard]] std::vector<FileIdentity> checkpoint_identity(
    const std::filesystem::path& directory, const std::vector<SafetensorsFile>& files,
    ThreadPool& threads);

}  // namespace awex
