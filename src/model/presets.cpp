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

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (auto& preset : presets()) names.push_back(std::move(preset.name));
  return names;
}

ModelConfig preset_config(std::string_view name) {
  for (auto& preset : presets()) {
    if (preset.name == name) return std::move(preset.config);
  }
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  throw request_error(fmt::format("there is no preset \"{}\"", name),
                      suggestion(lower, preset_names()));
}

}  // namespace awex
