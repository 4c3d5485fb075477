#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace awex {

inline constexpr const char* kConfigFile = "config.json";
inline constexpr const char* kSingleFile = "model.safetensors";
inline constexpr const char* kIndexFile = "model.safetensors.index.json";

/// Tensor name to the name of the file that must hold it.
using WeightMap = std::map<std::string, std::string>;

/// Which files make up a checkpoint, and what the index says about them (if there is one).
struct CheckpointFiles {
  std::vector<std::string> files;
  std::optional<WeightMap> index;
};

/// config.json's text. Throws a request error that says what to do where `directory` is something
/// else that people have: a Hugging Face cache, an adapter alone, GGUF, Mistral's own form.
[[nodiscard]] std::string read_config_text(const std::filesystem::path& directory);

/// Whether there is a weights file or an index, whatever is in them.
[[nodiscard]] bool holds_weights(const std::filesystem::path& directory);

/// model.safetensors, or the files that the index names; both together if the index names only that
/// file. Throws a request error for anything else, which says what to do about shards without an
/// index, an adapter, pickled weights and other kinds.
[[nodiscard]] CheckpointFiles list_checkpoint_files(const std::filesystem::path& directory);

/// A remark on a tensor name that a model does not have: what kind of file has such names, and what
/// to do about it. Empty strings where the name tells nothing.
struct NameRemark {
  std::string what;
  std::string hint;
};
[[nodiscard]] NameRemark remark_on_name(std::string_view tensor);

}  // namespace awex
