#include "model/config_fields.hpp"

#include <utility>

#include "base/error.hpp"
#include "model/json_input.hpp"

namespace awex {

using nlohmann::json;

ConfigFields::ConfigFields(const json& object, const std::string& file)
    : object_(object), file_(file) {
  if (!object.is_object()) throw request_error(file + ": must be a JSON object");
}

const json* ConfigFields::find(const char* field) const {
  const auto at = object_.find(field);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

bool ConfigFields::is_null(const char* field) const {
  const auto at = object_.find(field);
  return at != object_.end() && at->is_null();
}

void ConfigFields::refuse(const char* field, const std::string& why,
                          const std::string& hint) const {
  const auto* value = find(field);
  throw request_error(fmt::format("{}: \"{}\" is {}; {}", file_, field,
                                  value == nullptr ? "missing" : shown(*value), why),
                      hint);
}

const char* ConfigFields::name_of(const char* usual, Names names) const {
  const char* used = find(usual) != nullptr ? usual : nullptr;
  for (const char* name : names) {
    if (find(name) == nullptr) continue;
    if (used == nullptr) used = name;
    if (*find(name) == *find(used)) continue;
    refuse(name, fmt::format("that contradicts \"{}\", which is {}", used, shown(*find(used))));
  }
  return used != nullptr ? used : usual;
}

std::string ConfigFields::origin(const char* field) const {
  return find(field) != nullptr ? ""
                                : fmt::format(" (transformers' default: \"{}\" is missing)", field);
}

void ConfigFields::assume(const char* field, std::string value) const {
  assumed_.push_back({field, std::move(value)});
}

uint64_t ConfigFields::number(const char* field, std::optional<uint64_t> absent, uint64_t most,
                              uint64_t least) const {
  const auto* value = find(field);
  if (value == nullptr && absent) {
    assume(field, fmt::to_string(*absent));
    return *absent;
  }
  if (value == nullptr || !value->is_number_unsigned() || value->get<uint64_t>() < least ||
      value->get<uint64_t>() > most) {
    refuse(field, fmt::format("it must be a whole number from {} to {}", least, most));
  }
  return value->get<uint64_t>();
}

uint64_t ConfigFields::number_or_null(const char* field, uint64_t absent) const {
  return is_null(field) ? 0 : number(field, absent);
}

bool ConfigFields::flag(const char* field, bool absent) const {
  const auto* value = find(field);
  if (value == nullptr) return absent;
  if (!value->is_boolean()) refuse(field, "it must be true or false");
  return value->get<bool>();
}

std::optional<std::string> ConfigFields::text(const char* field) const {
  const auto* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) refuse(field, "it must be a string");
  return value->get<std::string>();
}

}  // namespace awex
