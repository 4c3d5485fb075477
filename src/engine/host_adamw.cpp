// Compiled with -ffp-contract=off: see engine/adamw_math.hpp.
#include <cmath>
#include <cstring>
#include <vector>

#include "base/thread_pool.hpp"
#include "base/work_progress.hpp"
#include "engine/adamw_backends.hpp"
#include "engine/adamw_math.hpp"
#include "model/convert.hpp"
#include "transfer/kernels/host_tiles.hpp"

namespace awex {
namespace {

/// `Element` is the weights' type, of model/convert.hpp.
template <class Element>
class HostAdamW final : public AdamW {
 public:
  HostAdamW(std::span<const AdamWView> views, ThreadPool& threads)
      : views_(views.begin(), views.end()), threads_(threads) {
    for (uint64_t i = 0; i < views_.size(); ++i) {
      tiles_.add(i, views_[i].rows, views_[i].cols, sizeof(float));
    }
  }

  void initialise() override {
    const auto start = [](const AdamWView& view, uint64_t at, uint64_t /*index*/) {
      view.master[at] = Element::value(load(view, at));
      view.exp_avg[at] = 0;
      view.exp_avg_sq[at] = 0;
    };
    tiles_.for_each(threads_, [&](const HostTile& tile) {
      for_elements_of(tile, start);
      work::advance(tile.rows * tile.cols * kStateBytes);
    });
  }

  void step(const AdamWStep& step) override {
    const auto update = [&step](const AdamWView& view, uint64_t at, uint64_t index) {
      AdamWElement element{view.master[at], view.exp_avg[at], view.exp_avg_sq[at]};
      update_moments(step, generated_gradient(step.gradient_seed, view.key, index), element);
      update_master(step, std::sqrt(unbiased_variance(step, element)), element);
      view.master[at] = element.master;
      view.exp_avg[at] = element.exp_avg;
      view.exp_avg_sq[at] = element.exp_avg_sq;
      store(view, at, Element::bits(element.master));
    };
    tiles_.for_each(threads_, [&](const HostTile& tile) { for_elements_of(tile, update); });
  }

 private:
  using Bits = typename Element::Bits;
  static constexpr uint64_t kStateBytes = 3 * sizeof(float);  ///< Of an element.

  static Bits load(const AdamWView& view, uint64_t at) {
    Bits bits = 0;
    std::memcpy(&bits, view.weights + at * sizeof(Bits), sizeof(Bits));
    return bits;
  }
  static void store(const AdamWView& view, uint64_t at, Bits bits) {
    std::memcpy(view.weights + at * sizeof(Bits), &bits, sizeof(Bits));
  }

  /// Calls work(view, position in its arrays, canonical index).
  template <class Work>
  void for_elements_of(const HostTile& tile, const Work& work) const {
    const auto& view = views_[tile.item];
    for (uint64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
      const uint64_t at = row * view.row_stride + tile.first_col;
      const uint64_t index = view.first_index + row * view.canonical_cols + tile.first_col;
      for (uint64_t col = 0; col < tile.cols; ++col) work(view, at + col, index + col);
    }
  }

  std::vector<AdamWView> views_;
  HostTiles tiles_;
  ThreadPool& threads_;
};

}  // namespace

std::unique_ptr<AdamW> make_host_adamw(std::span<const AdamWView> views, DType dtype,
                                       ThreadPool& threads) {
  switch (dtype) {
    case DType::kBf16:
      return std::make_unique<HostAdamW<Bf16Element>>(views, threads);
    case DType::kF16:
      return std::make_unique<HostAdamW<F16Element>>(views, threads);
    case DType::kF32:
      return std::make_unique<HostAdamW<F32Element>>(views, threads);
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      break;
  }
  throw untrainable(dtype);
}

}  // namespace awex
