#include "engine/engine.hpp"

#include <algorithm>
#include <map>
#include <string>

#include "base/error.hpp"

namespace awex {
namespace {

std::string describe(const Parameter& tensor) {
  return fmt::format("{} {} x {} at byte {}", dtype_name(tensor.dtype), tensor.rows, tensor.cols,
                     tensor.offset_bytes);
}

bool are_same(const Parameter& a, const Parameter& b) {
  return a.dtype == b.dtype && a.rows == b.rows && a.cols == b.cols &&
         a.offset_bytes == b.offset_bytes;
}

constexpr auto kRemedy =
    "the engine and its spec must agree: look at tp, ep, pp, the dtype and the padding of the "
    "vocabulary";

}  // namespace

PlacedMemory Engine::placed(Tag tag) {
  Region* memory = region(tag);
  if (memory == nullptr) return {};
  return {memory->name(), {{0, memory->data(), memory->bytes()}}};
}

void check_declared(const std::vector<Parameter>& declared, const RankLayout& layout) {
  // Parts of a pipeline may have tensors of the same name.
  std::multimap<std::string, const Parameter*> left;
  for (const auto& tensor : declared) left.emplace(tensor.name, &tensor);
  for (const auto& wanted : layout.parameters) {
    const auto [first, last] = left.equal_range(wanted.name);
    if (first == last) {
      throw request_error(fmt::format("the engine does not declare {}, which its layout has as {}",
                                      wanted.name, describe(wanted)),
                          kRemedy)
          .about_tensor(wanted.name);
    }
    const auto same =
        std::find_if(first, last, [&](const auto& one) { return are_same(*one.second, wanted); });
    if (same == last) {
      throw request_error(fmt::format("the engine declares {} as {}, its layout has it as {}",
                                      wanted.name, describe(*first->second), describe(wanted)),
                          kRemedy)
          .about_tensor(wanted.name);
    }
    left.erase(same);
  }
  if (left.empty()) return;
  const auto& unknown = *left.begin()->second;
  throw request_error(fmt::format("the engine declares {} as {}, its layout has no such tensor",
                                  unknown.name, describe(unknown)),
                      kRemedy)
      .about_tensor(unknown.name);
}

}  // namespace awex
