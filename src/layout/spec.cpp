#include "layout/spec.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <iterator>

#include "base/error.hpp"
#include "base/nearest.hpp"

namespace awex {
namespace {

constexpr const char* kForm = "write ENGINE or ENGINE:key=value,key=value";

/// Words of engines and launchers for keys that have another name here.
struct OtherWord {
  const char* word;
  const char* key;
};
constexpr OtherWord kOtherWords[] = {{"tp_size", "tp"},
                                     {"tensor_parallel_size", "tp"},
                                     {"tensor_model_parallel_size", "tp"},
                                     {"pp_size", "pp"},
                                     {"pipeline_parallel_size", "pp"},
                                     {"pipeline_model_parallel_size", "pp"},
                                     {"ep_size", "ep"},
                                     {"expert_parallel_size", "ep"},
                                     {"expert_model_parallel_size", "ep"},
                                     {"expert_tensor_parallel_size", "etp"},
                                     {"context_parallel_size", "cp"},
                                     {"dp_size", "dp"},
                                     {"data_parallel", "dp"},
                                     {"data_parallel_size", "dp"}};

std::string in_small_letters(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
  return text;
}

/// What to write instead of a part of a spec that is not key=value.
std::string form_hint(std::string_view item) {
  const auto letters =
      item.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_");
  if (letters == std::string_view::npos || letters == 0) return kForm;
  const auto value = item.find_first_not_of(": =", letters);
  if (value == std::string_view::npos) return kForm;
  return fmt::format("write {}={}", in_small_letters(std::string(item.substr(0, letters))),
                     item.substr(value));
}

/// What to write instead of a value that is no number: mostly other options follow in it.
std::string count_hint(const std::string& key, std::string text) {
  const auto sign = text.find_first_of(":; /+&");
  if (sign == std::string::npos || text.find('=', sign) == std::string::npos) {
    return fmt::format("write {}=2, for example", key);
  }
  for (auto& letter : text) {
    if (std::string_view(":; /+&").find(letter) != std::string_view::npos) letter = ',';
  }
  return fmt::format("commas part options: {}={}", key, text);
}

/// What to write instead of a key that the engine does not have. Short keys are names of their own:
/// the nearest one ("tp" for "dp") would mean something else.
std::string remedy_for(const std::string& key, const std::vector<std::string>& keys) {
  std::string meant = in_small_letters(key);
  std::replace(meant.begin(), meant.end(), '-', '_');
  for (const auto& other : kOtherWords) {
    if (meant == other.word) meant = other.key;
  }
  const auto has = [&](const char* name) {
    return std::find(keys.begin(), keys.end(), name) != keys.end();
  };
  if (meant != key && has(meant.c_str())) return fmt::format("write {}=", meant);
  if (meant == "dp") {
    std::string text =
        "leave it out: data parallel is what the other options leave of the ranks, so it follows "
        "from their number";
    if (has("attn_dp")) text += "; data parallel attention is attn_dp=";
    if (has("replicate")) text += "; replicate= says how much of it is replicas";
    return text;
  }
  if (keys.empty()) return "it takes no options";
  std::vector<std::string> near;
  std::copy_if(keys.begin(), keys.end(), std::back_inserter(near),
               [](const std::string& name) { return name.size() > 3; });
  const auto nearest = key.size() > 3 ? nearest_name(key, near) : "";
  return nearest.empty() ? fmt::format("known: {}", fmt::join(keys, ", "))
                         : fmt::format("did you mean \"{}\"?", nearest);
}

}  // namespace

EngineSpec::EngineSpec(std::string_view text) : text_(text) {
  const auto colon = text.find(':');
  engine_ = text.substr(0, colon);
  if (engine_.empty()) throw request_error(fmt::format("\"{}\" names no engine", text), kForm);
  if (colon == std::string_view::npos) return;
  std::string last_key;
  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const auto comma = rest.find(',');
    add(rest.substr(0, comma), last_key);
    if (comma == std::string_view::npos) return;
    rest = rest.substr(comma + 1);
  }
}

void EngineSpec::add(std::string_view item, std::string& last_key) {
  const auto equals = item.find('=');
  if (equals == std::string_view::npos && !item.empty() && last_key == "layout") {
    options_[last_key].append(",").append(item);
    return;
  }
  if (equals == std::string_view::npos || equals == 0 || equals + 1 == item.size()) {
    throw request_error(fmt::format("\"{}\" in \"{}\" is not key=value", item, text_),
                        form_hint(item));
  }
  last_key = item.substr(0, equals);
  if (!options_.emplace(last_key, item.substr(equals + 1)).second) {
    throw request_error(fmt::format("\"{}\" gives the key \"{}\" twice", text_, last_key));
  }
}

void EngineSpec::allow_only(const std::vector<std::string>& keys) const {
  for (const auto& [key, value] : options_) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    throw request_error(fmt::format("engine {} has no option \"{}\"", engine_, key),
                        remedy_for(key, keys));
  }
}

std::optional<std::string> EngineSpec::text_of(const std::string& key) const {
  const auto found = options_.find(key);
  if (found == options_.end()) return std::nullopt;
  return found->second;
}

std::optional<uint32_t> EngineSpec::count(const std::string& key) const {
  const auto text = text_of(key);
  if (!text) return std::nullopt;
  constexpr uint32_t kMost = 65536;
  uint32_t value = 0;
  const char* const text_end = text->data() + text->size();
  const auto [end, error] = std::from_chars(text->data(), text_end, value);
  if (error != std::errc{} || end != text_end || value < 1 || value > kMost) {
    throw request_error(
        fmt::format("\"{}\": {}={} is not a whole number from 1 to {}", text_, key, *text, kMost),
        count_hint(key, *text));
  }
  return value;
}

uint32_t EngineSpec::count(const std::string& key, uint32_t otherwise) const {
  return count(key).value_or(otherwise);
}

bool EngineSpec::flag(const std::string& key, bool otherwise) const {
  return choice(key, otherwise ? std::vector<std::string>{"on", "off"}
                               : std::vector<std::string>{"off", "on"}) == "on";
}

std::string EngineSpec::choice(const std::string& key,
                               const std::vector<std::string>& choices) const {
  auto text = text_of(key);
  if (!text) return choices.front();
  if (std::find(choices.begin(), choices.end(), *text) == choices.end()) {
    throw request_error(
        fmt::format("\"{}\": {}={} is none of {}", text_, key, *text, fmt::join(choices, ", ")),
        suggestion(*text, choices));
  }
  return *std::move(text);
}

EngineSpec EngineSpec::with(const std::string& key, uint32_t value) const {
  const auto entry = fmt::format("{}={}", key, value);
  for (const char* before : {":", ","}) {
    const auto at = text_.find(before + key + "=");
    if (at == std::string::npos) continue;
    const auto end = text_.find(',', at + 1);
    return {text_.substr(0, at + 1) + entry + (end == std::string::npos ? "" : text_.substr(end))};
  }
  return {text_ + (text_.find(':') == std::string::npos ? ":" : ",") + entry};
}

}  // namespace awex
