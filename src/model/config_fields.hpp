#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/config.hpp"

namespace awex {

inline constexpr uint64_t kMaxField = 1U << 24;  ///< Of every single size; sums are bounded apart.

/// A config.json's fields, with errors that name field, value and file. null counts as absent, as
/// it does for transformers. Keeps a list of the defaults that it gave. Refers to the object and
/// the file's name.
class ConfigFields {
 public:
  /// Names of a field that mean the same.
  using Names = std::initializer_list<const char*>;

  /// Throws a request error unless it is an object.
  ConfigFields(const nlohmann::json& object, const std::string& file);

  [[nodiscard]] const std::string& file() const { return file_; }

  /// The field's value; nullptr where it is absent.
  [[nodiscard]] const nlohmann::json* find(const char* field) const;
  [[nodiscard]] bool is_null(const char* field) const;

  /// Throws a request error: "<file>: "<field>" is <value>; <why>".
  [[noreturn]] void refuse(const char* field, const std::string& why,
                           const std::string& hint = {}) const;

  /// The one of a field's names that the file uses, or else `usual`. Two that differ are refused.
  [[nodiscard]] const char* name_of(const char* usual, Names names) const;

  /// " (its default: "field" is missing)" where a value that a message names is not the user's.
  [[nodiscard]] std::string origin(const char* field) const;

  /// Notes that the file leaves out a field, and what is taken instead.
  void assume(const char* field, std::string value) const;
  [[nodiscard]] const std::vector<AssumedField>& assumed() const { return assumed_; }

  /// A whole number in [least, most]; `absent`, where there is one, if the field is absent.
  [[nodiscard]] uint64_t number(const char* field, std::optional<uint64_t> absent = std::nullopt,
                                uint64_t most = kMaxField, uint64_t least = 1) const;
  /// A number of which null says that the model does without, and is 0 here.
  [[nodiscard]] uint64_t number_or_null(const char* field, uint64_t absent) const;
  [[nodiscard]] bool flag(const char* field, bool absent = false) const;
  [[nodiscard]] std::optional<std::string> text(const char* field) const;

 private:
  const nlohmann::json& object_;
  const std::string& file_;
  mutable std::vector<AssumedField> assumed_;
};

}  // namespace awex
