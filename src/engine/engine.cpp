#include "engine/engine.hpp"

#include <map>
#include <string>

#include "base/error.hpp"

namespace awex {
namespace {

std::string describe(const Parameter& tensor) {
  return fmt::format("{} {} x {} at byte {}", dtype_name(tensor.dtype), tensor.rows, tensor.cols,
                     tensor.offset_bytes);
}

constexpr auto kRemedy =
    "the engine and its spec must agree: look at tp, ep, pp, the dtype and the padding of the "
    "vocabulary";

}  // namespace

void check_declared(const std::vector<Parameter>& declared, const RankLayout& layout) {
  std::map<std::string, const Parameter*> found;
  for (const auto& tensor : declared) {
    if (found.emplace(tensor.name, &tensor).second) continue;
    throw request_error(fmt::format("the engine declares {} twice", tensor.name), kRemedy)
        .about_tensor(tensor.name);
  }
  for (const auto& wanted : layout.parameters) {
    const auto same = found.extract(wanted.name);
    if (same.empty()) {
      throw request_error(fmt::format("the engine does not declare {}, which its layout has as {}",
                                      wanted.name, describe(wanted)),
                          kRemedy)
          .about_tensor(wanted.name);
    }
    if (describe(*same.mapped()) == describe(wanted)) continue;
    throw request_error(fmt::format("the engine declares {} as {}, its layout has it as {}",
                                    wanted.name, describe(*same.mapped()), describe(wanted)),
                        kRemedy)
        .about_tensor(wanted.name);
  }
  if (found.empty()) return;
  const auto& unknown = *found.begin()->second;
  throw request_error(fmt::format("the engine declares {} as {}, its layout has no such tensor",
                                  unknown.name, describe(unknown)),
                      kRemedy)
      .about_tensor(unknown.name);
}

}  // namespace awex
