#include <doctest/doctest.h>

#include <random>
#include <vector>

#include "base/thread_pool.hpp"
#include "engine/adamw_backends.hpp"
#include "gpu/gpu_bench.hpp"

using namespace awex;
using awex::test::GpuBench;
using awex::test::GpuBuffer;

namespace {

constexpr uint64_t kElements = 200'000;  ///< In each of the four arrays.

struct Box {
  uint64_t first;  ///< Position of its first element in the arrays.
  uint64_t rows;
  uint64_t cols;
  uint64_t row_stride;
  uint64_t canonical_cols;
};

/// Boxes that share no element: good and bad alignment, packed and strided, empty.
constexpr Box kBoxes[] = {{0, 1, 70'001, 70'001, 70'001}, {70'004, 30, 64, 72, 4096},
                          {75'001, 30, 64, 68, 64},       {80'000, 50, 41, 41, 41},
                          {90'000, 50, 41, 44, 100},      {100'000, 0, 8, 8, 8},
                          {120'000, 128, 512, 512, 512}};

/// The four arrays of an optimizer, wherever they lie.
struct Arrays {
  std::byte* weights;
  std::byte* master;
  std::byte* exp_avg;
  std::byte* exp_avg_sq;

  [[nodiscard]] std::vector<AdamWView> views(uint64_t element_size) const {
    std::vector<AdamWView> views;
    for (const auto& box : kBoxes) {
      const auto state = [&](std::byte* data) {
        return reinterpret_cast<float*>(data) + box.first;
      };
      views.push_back({weights + box.first * element_size, state(master), state(exp_avg),
                       state(exp_avg_sq), box.rows, box.cols, box.row_stride, 8 * box.first,
                       box.canonical_cols, 77 + box.first});
    }
    return views;
  }
};

/// Weights of every exponent of their dtype, subnormals and zeros included, but finite: a bit that
/// infinities and NaNs need is cleared.
std::vector<std::byte> random_weights(DType dtype) {
  std::mt19937 random(3);
  std::vector<std::byte> bits(kElements * element_bytes(dtype));
  for (auto& byte : bits) byte = static_cast<std::byte>(random());
  const uint64_t step = element_bytes(dtype);
  const uint64_t in_element = dtype == DType::kBf16 ? 0 : dtype == DType::kF16 ? 1 : 2;
  const auto mask = dtype == DType::kF16 ? std::byte{0x04} : std::byte{0x80};
  for (uint64_t i = in_element; i < bits.size(); i += step) bits[i] &= ~mask;
  return bits;
}

const std::vector<std::byte> kPoison(kElements * sizeof(float), std::byte{0x5a});

}  // namespace

TEST_CASE("steps on the GPU give the host's bits and touch nothing else") {
  GpuBench bench;
  for (const auto dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    CAPTURE(dtype_name(dtype));
    const uint64_t size = element_bytes(dtype);
    auto weights = random_weights(dtype);
    auto master = kPoison;
    auto exp_avg = kPoison;
    auto exp_avg_sq = kPoison;
    const GpuBuffer gpu_weights(*bench.device, weights);
    const GpuBuffer gpu_master(*bench.device, master);
    const GpuBuffer gpu_exp_avg(*bench.device, exp_avg);
    const GpuBuffer gpu_exp_avg_sq(*bench.device, exp_avg_sq);

    const Arrays host{weights.data(), master.data(), exp_avg.data(), exp_avg_sq.data()};
    const Arrays gpu{gpu_weights.data(), gpu_master.data(), gpu_exp_avg.data(),
                     gpu_exp_avg_sq.data()};
    ThreadPool threads(2);
    const auto on_host = make_host_adamw(host.views(size), dtype, threads);
    const auto on_gpu = make_cuda_adamw(*bench.kernels, gpu.views(size), dtype);
    on_host->initialise();
    on_gpu->initialise();
    for (uint64_t step = 1; step <= 4; ++step) {
      CAPTURE(step);
      on_host->step(make_step({}, step));
      on_gpu->step(make_step({}, step));
      bench.wait();
      CHECK((gpu_exp_avg.fetch() == exp_avg));
      CHECK((gpu_exp_avg_sq.fetch() == exp_avg_sq));
      CHECK((gpu_master.fetch() == master));
      CHECK((gpu_weights.fetch() == weights));
    }
  }
}

TEST_CASE("dtypes that cannot be trained are refused") {
  GpuBench bench;
  CHECK_THROWS_AS((void)make_cuda_adamw(*bench.kernels, {}, DType::kF8E4M3), Error);
}
