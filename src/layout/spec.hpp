#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace awex {

/// An engine and its options as a user writes them: "megatron:tp=2,pp=2". Made once of what was
/// typed; a text in code is one wherever a spec is asked for.
class EngineSpec {
 public:
  /// Splits the text at commas; those within the value of "layout" belong to it, as Megatron's
  /// pipeline layouts have them ("layout=Et,t|tL"). Throws a request error for empty names, missing
  /// '=' and repeated keys.
  EngineSpec(std::string_view text);
  EngineSpec(const std::string& text) : EngineSpec(std::string_view(text)) {}
  EngineSpec(const char* text) : EngineSpec(std::string_view(text)) {}

  [[nodiscard]] const std::string& engine() const { return engine_; }
  [[nodiscard]] const std::string& text() const { return text_; }

  /// Throws a request error that says what to write instead when the spec has a key not in `keys`.
  void allow_only(const std::vector<std::string>& keys) const;
  /// A whole number from 1 to 65536 for a key, or `otherwise` when it is not given.
  [[nodiscard]] uint32_t count(const std::string& key, uint32_t otherwise) const;
  /// The same, or nothing when it is not given.
  [[nodiscard]] std::optional<uint32_t> count(const std::string& key) const;
  /// Whether a key is "on" rather than "off", or `otherwise` when it is not given.
  [[nodiscard]] bool flag(const std::string& key, bool otherwise) const;
  /// A value out of `choices`, or the first of them when the key is not given.
  [[nodiscard]] std::string choice(const std::string& key,
                                   const std::vector<std::string>& choices) const;
  /// The value as written.
  [[nodiscard]] std::optional<std::string> text_of(const std::string& key) const;

  /// The same spec with another number for a key, or with the key added.
  [[nodiscard]] EngineSpec with(const std::string& key, uint32_t value) const;

 private:
  void add(std::string_view item, std::string& last_key);

  std::string text_;
  std::string engine_;
  std::map<std::string, std::string> options_;
};

}  // namespace awex
