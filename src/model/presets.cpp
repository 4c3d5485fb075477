#include "model/presets.hpp"

#include <algorithm>
#include <cctype>
#include <utility>

#include "base/error.hpp"
#include "base/nearest.hpp"
#include "model/families/family.hpp"

namespace awex {
namespace {

/// The small ones first, else in the order of the families.
std::vector<Preset> presets() {
  std::vector<Preset> all;
  for (const auto& family : families()) {
    all.insert(all.end(), family.presets.begin(), family.presets.end());
  }
  std::stable_partition(all.begin(), all.end(),
                        [](const Preset& preset) { return preset.name.starts_with("tiny-"); });
  return all;
}

/// Whether `word` is `preset` with what releases append: -Instruct, -Base, -FP8. A digit would
/// belong to the name.
bool is_release_of(const std::string& preset, const std::string& word) {
  return word.size() > preset.size() && word.starts_with(preset) &&
         std::isdigit(static_cast<unsigned char>(word[preset.size()])) == 0;
}

/// "qwen3-" of "qwen3-9b": what stands before a size; empty where there is no size.
std::string stem_of(std::string_view name) {
  const auto dash = name.find_last_of('-');
  const bool is_sized = dash != std::string_view::npos && dash > 0 && dash + 1 < name.size() &&
                        std::isdigit(static_cast<unsigned char>(name[dash + 1])) != 0;
  return is_sized ? std::string(name.substr(0, dash + 1)) : "";
}

/// Letters and digits alone, small.
std::string squeezed(std::string_view text) {
  std::string out;
  for (const unsigned char letter : text) {
    if (std::isalnum(letter) != 0) out += static_cast<char>(std::tolower(letter));
  }
  return out;
}

}  // namespace

std::vector<std::string> presets_like(std::string_view word) {
  // Of "preset:NAME", "preset=NAME" and "Qwen/NAME" the last part is the name.
  const auto name = word.substr(word.find_last_of(":=/") + 1);  // from 0 where there is none
  const auto start = squeezed(name);
  if (start.empty()) return {};
  std::vector<std::string> found;
  for (auto& preset : preset_names()) {
    const auto whole = squeezed(preset);
    if (whole == start) return {preset};
    if (whole.starts_with(start)) found.push_back(std::move(preset));
  }
  if (!found.empty()) return found;
  for (auto& preset : preset_names()) {
    if (is_release_of(squeezed(preset), start)) found.push_back(std::move(preset));
  }
  if (!found.empty()) return found;
  if (const auto stem = stem_of(name); !stem.empty()) {
    for (auto& preset : preset_names()) {
      if (!stem_of(preset).empty() && preset.starts_with(stem)) found.push_back(std::move(preset));
    }
  }
  if (!found.empty()) return found;
  auto nearest = nearest_name(name, preset_names());
  return nearest.empty() ? found : std::vector<std::string>{std::move(nearest)};
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (auto& preset : presets()) names.push_back(std::move(preset.name));
  return names;
}

ModelConfig preset_config(std::string_view name) {
  for (auto& preset : presets()) {
    if (preset.name == name) return std::move(preset.config);
  }
  const auto meant = presets_like(name);
  throw request_error(fmt::format("there is no preset \"{}\"", name),
                      meant.empty() ? fmt::format("known: {}", fmt::join(preset_names(), ", "))
                      : meant.size() == 1
                          ? fmt::format("did you mean \"{}\"?", meant.front())
                          : fmt::format("did you mean one of {}?", fmt::join(meant, ", ")));
}

}  // namespace awex
