#include "model/generated_source.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/error.hpp"
#include "model/convert.hpp"
#include "model/digest.hpp"

namespace awex {
namespace {

constexpr uint64_t kLanes = 4;             ///< Elements made of one 64-bit word, 16 bits each.
constexpr uint64_t kBlock = 128 * kLanes;  ///< Elements made at once; fits the first cache.
constexpr uint64_t kStream = 0x5851f42d4c957f2dU;  ///< Keeps values apart from digest keys.

using Block = std::array<uint16_t, kBlock>;

/// value = (middle + r) * scale for a random whole number r in [-2^15, 2^15). A sum of floats
/// instead could be fused on some processors and give other bits there.
struct Distribution {
  int32_t middle;
  float scale;
};

constexpr Distribution kNearZero{0, 0.05F / 32768.0F};
constexpr Distribution kNearOne{800'000, 1.0F / 800'000.0F};

Distribution distribution_of(const TensorInfo& tensor) {
  return tensor.name.ends_with("norm.weight") ? kNearOne : kNearZero;
}

/// Makes the block's elements in three simple loops, which compilers vectorise.
void make_block(uint64_t key, uint64_t block, const Distribution& distribution, Block& out) {
  std::array<uint64_t, kBlock / kLanes> words{};
  const uint64_t first_word = block * words.size();
  for (uint64_t i = 0; i < words.size(); ++i) {
    words[i] = mix64(key + (first_word + i) * 0x9e3779b97f4a7c15U);
  }
  std::memcpy(out.data(), words.data(), sizeof(out));
  for (auto& element : out) {
    const int32_t random = static_cast<int32_t>(element) - 32768;
    element = f32_to_bf16(static_cast<float>(distribution.middle + random) * distribution.scale);
  }
}

class GeneratedSource final : public WeightSource {
 public:
  explicit GeneratedSource(Catalogue catalogue) : catalogue_(std::move(catalogue)) {
    for (const auto& tensor : catalogue_.tensors()) {
      if (tensor.dtype != DType::kBf16) {
        throw runtime_error(fmt::format("cannot generate {} weights", dtype_name(tensor.dtype)))
            .about_tensor(tensor.name);
      }
    }
  }

  [[nodiscard]] const Catalogue& catalogue() const override { return catalogue_; }

  void read(uint32_t tensor, uint64_t first, std::span<std::byte> out) const override {
    const auto& info = catalogue_.tensors().at(tensor);
    check_range(info, first, out.size());
    const auto key = mix64(tensor_key(info.name) ^ kStream);
    const auto distribution = distribution_of(info);
    Block block;
    while (!out.empty()) {
      make_block(key, first / kBlock, distribution, block);
      const auto inside = first % kBlock;
      const auto count = std::min(kBlock - inside, out.size() / sizeof(uint16_t));
      std::memcpy(out.data(), block.data() + inside, count * sizeof(uint16_t));
      out = out.subspan(count * sizeof(uint16_t));
      first += count;
    }
  }

 private:
  Catalogue catalogue_;
};

}  // namespace

std::unique_ptr<WeightSource> generate_weights(Catalogue catalogue) {
  return std::make_unique<GeneratedSource>(std::move(catalogue));
}

}  // namespace awex
