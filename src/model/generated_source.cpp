#include "model/generated_source.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/error.hpp"
#include "base/work_progress.hpp"
#include "model/convert.hpp"
#include "model/digest.hpp"

namespace awex {
namespace {

constexpr uint64_t kLanes = 4;             ///< Elements made of one 64-bit word, 16 bits each.
constexpr uint64_t kBlock = 128 * kLanes;  ///< Elements made at once; fits the first cache.
constexpr uint64_t kStream = 0x5851f42d4c957f2dU;  ///< Keeps values apart from digest keys.

/// value = (middle + r) * scale for a random whole number r in [-2^15, 2^15). A sum of floats
/// instead could be fused on some processors and give other bits there.
struct Distribution {
  int32_t middle;
  float scale;
};

constexpr Distribution kNearZero{0, 0.05F / 32768.0F};
constexpr Distribution kNearOne{800'000, 1.0F / 800'000.0F};

Distribution distribution_of(const TensorInfo& tensor) {
  return is_norm(tensor.role) ? kNearOne : kNearZero;
}

template <class Element>
using Block = std::array<typename Element::Bits, kBlock>;

/// Makes the block's elements in three simple loops, which compilers vectorise.
template <class Element>
void make_block(uint64_t key, uint64_t block, const Distribution& distribution,
                Block<Element>& out) {
  std::array<uint64_t, kBlock / kLanes> words{};
  const uint64_t first_word = block * words.size();
  for (uint64_t i = 0; i < words.size(); ++i) {
    words[i] = mix64(key + (first_word + i) * 0x9e3779b97f4a7c15U);
  }
  std::array<uint16_t, kBlock> randoms;
  std::memcpy(randoms.data(), words.data(), sizeof(randoms));
  for (uint64_t i = 0; i < kBlock; ++i) {
    const int32_t random = static_cast<int32_t>(randoms[i]) - 32768;
    out[i] = Element::bits(static_cast<float>(distribution.middle + random) * distribution.scale);
  }
}

/// Writes the tensor's elements from `first` on.
template <class Element>
void generate(const TensorInfo& tensor, uint64_t first, std::span<std::byte> out) {
  constexpr uint64_t kSize = sizeof(typename Element::Bits);
  const auto key = mix64(tensor_key(tensor.name) ^ kStream);
  const auto distribution = distribution_of(tensor);
  Block<Element> block;
  while (!out.empty()) {
    make_block<Element>(key, first / kBlock, distribution, block);
    const auto inside = first % kBlock;
    const auto count = std::min(kBlock - inside, out.size() / kSize);
    std::memcpy(out.data(), block.data() + inside, count * kSize);
    out = out.subspan(count * kSize);
    first += count;
  }
}

using Generator = void (*)(const TensorInfo&, uint64_t, std::span<std::byte>);

Generator generator_for(const TensorInfo& tensor) {
  switch (tensor.dtype) {
    case DType::kBf16:
      return generate<Bf16Element>;
    case DType::kF16:
      return generate<F16Element>;
    case DType::kF32:
      return generate<F32Element>;
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      break;
  }
  throw runtime_error(fmt::format("cannot generate {} weights", dtype_name(tensor.dtype)))
      .about_tensor(tensor.name);
}

class GeneratedSource final : public WeightSource {
 public:
  explicit GeneratedSource(Catalogue catalogue) : catalogue_(std::move(catalogue)) {
    for (const auto& tensor : catalogue_.tensors()) (void)generator_for(tensor);
  }

  [[nodiscard]] const Catalogue& catalogue() const override { return catalogue_; }

  void read(uint32_t tensor, uint64_t first, std::span<std::byte> out) const override {
    const auto& info = catalogue_.tensors().at(tensor);
    check_range(info, first, out.size());
    generator_for(info)(info, first, out);
    work::advance(out.size());
  }

 private:
  Catalogue catalogue_;
};

}  // namespace

std::unique_ptr<WeightSource> generate_weights(Catalogue catalogue) {
  return std::make_unique<GeneratedSource>(std::move(catalogue));
}

}  // namespace awex
