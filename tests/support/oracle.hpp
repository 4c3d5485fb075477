#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "layout/layout.hpp"
#include "model/catalogue.hpp"

/// What every rank of every engine holds, written a second time for tests: whole tensors are built
/// out of element identities, glued, padded and chopped as the engines' own sources do it. It
/// shares no geometry with src/layout: no boxes, no strides, no offsets.
namespace awex::test {

/// One element of one canonical tensor: tensor << 40 | row-major index.
using Identity = uint64_t;

/// Where an engine holds an element that is no canonical one.
inline constexpr Identity kPadding = ~Identity{0};

[[nodiscard]] constexpr Identity identity_of(uint32_t tensor, uint64_t index) {
  return Identity{tensor} << 40 | index;
}
[[nodiscard]] constexpr uint32_t tensor_of(Identity id) { return static_cast<uint32_t>(id >> 40); }
[[nodiscard]] constexpr uint64_t index_of(Identity id) { return id & ((Identity{1} << 40) - 1); }

/// "model.norm.weight[3]", "padding".
[[nodiscard]] std::string describe_identity(const Catalogue& catalogue, Identity id);

/// A matrix of identities. A vector of n elements is n rows of one column, as in the catalogue.
struct IdMatrix {
  uint64_t rows = 0;
  uint64_t cols = 0;
  std::vector<Identity> ids;  ///< Row-major.

  bool operator==(const IdMatrix&) const = default;
};

/// Everything that a rank holds, by the engine's own parameter names.
using RankContents = std::map<std::string, IdMatrix>;

/// Thrown when the model cannot be spread in the way that is asked for.
struct DoesNotDivide {
  std::string what;
};

/// An engine and its parallelism. `tp` is 1 for "hf".
struct EngineCase {
  std::string engine;  ///< "hf", "megatron" or "sglang".
  uint64_t tp = 1;

  [[nodiscard]] std::string spec() const;
};

/// The canonical tensors that a config must have, names and shapes, in no particular order.
[[nodiscard]] std::map<std::string, std::pair<uint64_t, uint64_t>> expected_tensors(
    const ModelConfig& config);

/// What rank `rank` of a role of `engine` holds; ranks beyond the first tp repeat them. Throws
/// DoesNotDivide.
[[nodiscard]] RankContents expected_contents(const EngineCase& engine, const Catalogue& catalogue,
                                             uint32_t rank);

/// The identities of a whole weights region, element by element, with the expected contents at the
/// places where `layout` puts the parameters. Requires the same names and shapes in both.
[[nodiscard]] std::vector<Identity> expected_region(const RankContents& contents,
                                                    const RankLayout& layout,
                                                    const Catalogue& catalogue);

}  // namespace awex::test
