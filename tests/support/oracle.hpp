#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
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
  std::string engine = "hf";  ///< "hf", "megatron", "fsdp", "sglang" or "vllm".
  uint64_t tp = 1;
  std::map<std::string, std::string> options{};  ///< The others, as a spec writes them.

  [[nodiscard]] std::string spec() const;
  [[nodiscard]] uint64_t number(const std::string& key, uint64_t otherwise = 1) const;
  [[nodiscard]] std::string text(const std::string& key, const std::string& otherwise) const;
  [[nodiscard]] bool on(const std::string& key, bool otherwise = false) const;
};

/// The canonical tensors that a config must have, names and shapes, in no particular order.
[[nodiscard]] std::map<std::string, std::pair<uint64_t, uint64_t>> expected_tensors(
    const ModelConfig& config);

/// How the model's files call what holds a layer's experts.
[[nodiscard]] std::string moe_module(const ModelConfig& config);

/// The dtype in which an engine holds a canonical tensor, or the scales of one; by default the
/// model's. A router's correction bias is fp32 in any model.
[[nodiscard]] DType expected_dtype(const ModelConfig& config, const std::string& tensor,
                                   const EngineCase& engine = {});

/// The rows and columns of the blocks that share an fp8 scale; 0 for an engine that quantises
/// nothing.
[[nodiscard]] uint64_t scale_block(const EngineCase& engine);

/// What rank `rank` of a role of `ranks` ranks of `engine` holds. Scales are tensors behind the
/// catalogue's, one for each quantised one, in the same order; the catalogue may have them or not.
/// Throws DoesNotDivide.
[[nodiscard]] RankContents expected_contents(const EngineCase& engine, const Catalogue& catalogue,
                                             uint64_t rank, uint64_t ranks);

/// The layers of each pipeline stage of an inference engine, or of each of Megatron's model chunks
/// (chunk * pp + stage). Throws DoesNotDivide.
[[nodiscard]] std::vector<std::vector<uint64_t>> expected_stages(const EngineCase& engine,
                                                                 uint64_t layers);

/// A whole weights region, byte by byte: the identity of an element where its first byte lies,
/// kRest on its other bytes, kPadding where no canonical element is. The contents stand where
/// `layout` puts the parameters. Requires the same names and shapes in both.
[[nodiscard]] std::vector<Identity> expected_region(const RankContents& contents,
                                                    const RankLayout& layout);

/// Where a trainer keeps the scales of what its shards touch, by the byte of the region at which a
/// scale begins; with `owned` only those of blocks whose first element it holds. Throws a logic
/// error if two share a place. The places are those that the shards themselves say.
[[nodiscard]] std::map<uint64_t, Identity> expected_scales(const RankLayout& layout,
                                                           const Catalogue& catalogue,
                                                           uint64_t block, bool owned);

/// A byte of an element that is not its first.
inline constexpr Identity kRest = kPadding - 1;

}  // namespace awex::test
