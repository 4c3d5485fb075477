#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/named.hpp"
#include "base/nearest.hpp"
#include "model/json_input.hpp"

namespace awex {

/// Reads the fields of one object of unknown origin. Every call throws request errors that name the
/// object and the key.
class JsonFields {
 public:
  /// `object` must outlive it; `what` is its name in errors.
  JsonFields(const nlohmann::json& object, std::string what);

  /// Null where the key is missing, or its value is null.
  [[nodiscard]] const nlohmann::json* find(const char* key);
  [[nodiscard]] const nlohmann::json& get(const char* key);
  [[nodiscard]] bool boolean(const char* key);
  [[nodiscard]] uint64_t count(const char* key);
  /// Empty where the key is missing.
  [[nodiscard]] std::string text(const char* key);
  [[nodiscard]] std::optional<double> number(const char* key);
  [[nodiscard]] ExitCode exit_code(const char* key);
  /// As error_json (base/error_json.hpp) writes it; nothing where the key is missing.
  [[nodiscard]] std::optional<Error> error(const char* key);
  template <class Value, size_t N>
  [[nodiscard]] Value choice(const char* key, const std::array<Named<Value>, N>& names) {
    return choice_of(key, get(key), names);
  }
  /// The same of `value`, a part of what the key has.
  template <class Value, size_t N>
  [[nodiscard]] Value choice_of(const char* key, const nlohmann::json& value,
                                const std::array<Named<Value>, N>& names) const {
    const auto text = text_of_value(key, value);
    std::vector<std::string> known;
    for (const auto& named : names) {
      if (text == named.name) return named.value;
      known.emplace_back(named.name);
    }
    throw request_error(fmt::format("{}: \"{}\" is {}", what_, key, in_quotes(text)),
                        suggestion(text, known));
  }
  /// Refuses keys that nobody has asked for.
  void finish() const;

  /// "<object>: "<key>" is <value>, not <kind>".
  [[nodiscard]] Error is_not(const char* key, const nlohmann::json& value, const char* kind) const;

 private:
  [[nodiscard]] std::string text_of_value(const char* key, const nlohmann::json& value) const;

  const nlohmann::json& object_;
  std::string what_;
  std::vector<std::string> known_;
};

}  // namespace awex
