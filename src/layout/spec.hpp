#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace awex {

/// An engine and its options as a user writes them: "megatron:tp=2,pp=2".
class EngineSpec {
 public:
  /// Splits the text. Throws a request error for empty names, missing '=' and repeated keys.
  explicit EngineSpec(std::string_view text);

  [[nodiscard]] const std::string& engine() const { return engine_; }
  [[nodiscard]] const std::string& text() const { return text_; }

  /// Throws a request error that suggests the nearest key when the spec has a key not in `keys`.
  void allow_only(const std::vector<std::string>& keys) const;
  /// A whole number from 1 to 65536 for a key, or `otherwise` when it is not given.
  [[nodiscard]] uint32_t count(const std::string& key, uint32_t otherwise) const;

 private:
  std::string text_;
  std::string engine_;
  std::map<std::string, std::string> options_;
};

}  // namespace awex
