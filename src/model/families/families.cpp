#include <algorithm>

#include "base/error.hpp"
#include "model/families/family.hpp"
// "Family llama_family();" and so on, and kMakers, a list of these functions: CMake writes it.
#include "model/families/registered.inc"

namespace awex {

const std::vector<Family>& families() {
  static const std::vector<Family> all = [] {
    std::vector<Family> made;
    for (const auto make : kMakers) made.push_back(make());
    return made;
  }();
  return all;
}

const Family& family_of(const ModelConfig& config) {
  const auto& all = families();
  const auto found = std::find_if(
      all.begin(), all.end(), [&](const Family& family) { return family.name == config.family; });
  if (found == all.end()) {
    throw runtime_error(fmt::format("there is no family of models \"{}\"", config.family));
  }
  return *found;
}

}  // namespace awex
