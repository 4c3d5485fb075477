#include "model/json_fields.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace awex {

using nlohmann::json;

JsonFields::JsonFields(const json& object, std::string what)
    : object_(object), what_(std::move(what)) {
  if (!object.is_object()) {
    throw request_error(fmt::format("{}: {} is no object", what_, shown(object)));
  }
}

const json* JsonFields::find(const char* key) {
  known_.emplace_back(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const json& JsonFields::get(const char* key) {
  const auto* value = find(key);
  if (value == nullptr) throw request_error(fmt::format("{}: \"{}\" is missing", what_, key));
  return *value;
}

bool JsonFields::boolean(const char* key) {
  const auto& value = get(key);
  if (!value.is_boolean()) throw is_not(key, value, "true or false");
  return value.get<bool>();
}

uint64_t JsonFields::count(const char* key) {
  const auto& value = get(key);
  if (!value.is_number_unsigned()) throw is_not(key, value, "a count");
  return value.get<uint64_t>();
}

std::string JsonFields::text(const char* key) {
  const auto* value = find(key);
  return value == nullptr ? std::string() : text_of_value(key, *value);
}

std::optional<double> JsonFields::number(const char* key) {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) throw is_not(key, *value, "a number");
  return value->get<double>();
}

ExitCode JsonFields::exit_code(const char* key) {
  const auto code = count(key);
  if (code > static_cast<uint64_t>(ExitCode::kPeerLost)) {
    throw is_not(key, object_.at(key), "an exit code");
  }
  return static_cast<ExitCode>(code);
}

std::optional<Error> JsonFields::error(const char* key) {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  JsonFields fields(*value, "the error");
  const auto code = fields.exit_code("code");
  Error error(code, fields.text("message"), fields.text("hint"));
  auto& context = error.context();
  if (const auto* rank = fields.find("rank")) {
    constexpr int kMostRanks = std::numeric_limits<int>::max();
    if (!rank->is_number_unsigned() || rank->get<uint64_t>() > kMostRanks) {
      throw fields.is_not("rank", *rank, "a rank");
    }
    context.rank = rank->get<int>();
  }
  context.host = fields.text("host");
  context.gpu = fields.text("gpu");
  context.role = fields.text("role");
  context.phase = fields.text("phase");
  context.tag = fields.text("tag");
  context.tensor = fields.text("tensor");
  return error;
}

void JsonFields::finish() const {
  for (const auto& item : object_.items()) {
    if (std::find(known_.begin(), known_.end(), item.key()) != known_.end()) continue;
    throw request_error(fmt::format("{}: unknown key {}", what_, in_quotes(item.key())),
                        suggestion(item.key(), known_));
  }
}

Error JsonFields::is_not(const char* key, const json& value, const char* kind) const {
  return request_error(fmt::format("{}: \"{}\" is {}, not {}", what_, key, shown(value), kind));
}

std::string JsonFields::text_of_value(const char* key, const json& value) const {
  if (!value.is_string()) throw is_not(key, value, "a text");
  return value.get<std::string>();
}

}  // namespace awex
