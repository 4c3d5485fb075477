#include "layout/spec.hpp"

#include <algorithm>
#include <charconv>

#include "base/error.hpp"
#include "base/nearest.hpp"

namespace awex {
namespace {

constexpr const char* kForm = "write ENGINE or ENGINE:key=value,key=value";

}  // namespace

EngineSpec::EngineSpec(std::string_view text) : text_(text) {
  const auto colon = text.find(':');
  engine_ = text.substr(0, colon);
  if (engine_.empty()) throw request_error(fmt::format("\"{}\" names no engine", text), kForm);
  if (colon == std::string_view::npos) return;
  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const auto comma = rest.find(',');
    const auto item = rest.substr(0, comma);
    const auto equals = item.find('=');
    if (equals == std::string_view::npos || equals == 0 || equals + 1 == item.size()) {
      throw request_error(fmt::format("\"{}\" in \"{}\" is not key=value", item, text), kForm);
    }
    const std::string key(item.substr(0, equals));
    if (!options_.emplace(key, item.substr(equals + 1)).second) {
      throw request_error(fmt::format("\"{}\" gives the key \"{}\" twice", text, key));
    }
    if (comma == std::string_view::npos) return;
    rest = rest.substr(comma + 1);
  }
}

void EngineSpec::allow_only(const std::vector<std::string>& keys) const {
  for (const auto& [key, value] : options_) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    throw request_error(fmt::format("engine {} has no option \"{}\"", engine_, key),
                        keys.empty() ? "it takes no options" : suggestion(key, keys));
  }
}

uint32_t EngineSpec::count(const std::string& key, uint32_t otherwise) const {
  const auto found = options_.find(key);
  if (found == options_.end()) return otherwise;
  const auto& text = found->second;
  constexpr uint32_t kMost = 65536;
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 1 || value > kMost) {
    throw request_error(
        fmt::format("\"{}\": {}={} is not a whole number from 1 to {}", text_, key, text, kMost));
  }
  return value;
}

}  // namespace awex
