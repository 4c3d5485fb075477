#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.hpp"

namespace awex {

class ConfigFields;
class TensorLister;

/// A published shape, or a small one for tests.
struct Preset {
  std::string name;
  ModelConfig config;
};

/// A part of stored names for which files may have another.
struct StoredName {
  std::string canonical;
  std::string stored;
};

/// A kind of model: a class of transformers. All that is known of it is said in one file,
/// families/NAME.cpp, which defines `Family NAME_family()`; families/CMakeLists.txt lists the
/// names. families/blocks.hpp has the parts that families share.
struct Family {
  std::string name;                        ///< Its model_type, and ModelConfig::family.
  std::string class_name;                  ///< In "architectures".
  std::vector<std::string> other_types{};  ///< Further model_types of the same class.
  /// How transformers 4 calls the number of routed experts; nullptr for dense models.
  const char* experts_field = nullptr;
  /// Reads what differs from family to family: attention and experts. Layers, hidden, intermediate,
  /// vocabulary, heads and tied embeddings have been read. Throws a request error for what the
  /// family cannot be, and for what no engine has a place for.
  void (*read)(const ConfigFields&, ModelConfig&) = nullptr;
  /// Writes what `read` reads.
  void (*write)(nlohmann::ordered_json&, const ModelConfig&) = nullptr;
  /// Lists the tensors of the lister's layer.
  void (*list_layer)(TensorLister&) = nullptr;
  /// How names of files begin that nobody needs, besides those that all families have (rotary
  /// buffers, "mtp.", layers behind the last one).
  std::vector<std::string> ignored{};
  /// Other names for the same tensor.
  std::vector<StoredName> stored{};
  std::vector<Preset> presets{};
};

/// All of them, as families/CMakeLists.txt lists them.
[[nodiscard]] const std::vector<Family>& families();

/// The family of config.family. Throws a run-time error if there is none of that name.
[[nodiscard]] const Family& family_of(const ModelConfig& config);

}  // namespace awex
