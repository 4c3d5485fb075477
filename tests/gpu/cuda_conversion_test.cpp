#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <random>
#include <vector>

#include "gpu/gpu_bench.hpp"
#include "transfer/kernels/host_kernels.hpp"

// The GPU must give the host's bits: the host's are tested against the definition.

using namespace awex;
using awex::test::GpuBench;
using awex::test::GpuBuffer;
using awex::test::named_bytes;

namespace {

constexpr uint64_t kSourceBytes = 8 << 20;
constexpr uint64_t kScales = 1 << 20;
constexpr uint64_t kTargetBytes = 64 << 20;
constexpr uint32_t kSums = 5;
constexpr std::byte kPoison{0xee};

struct HostBench {
  std::unique_ptr<Device> device = make_host_device(0, 1);
  std::unique_ptr<Kernels> kernels = make_host_kernels(*device, 4);
};

/// Bits of all kinds, NaNs and infinities among them; `tame`: none of these in elements that lie at
/// multiples of their size.
std::vector<std::byte> source_bytes(bool tame) {
  auto bytes = named_bytes(kSourceBytes);
  for (uint64_t i = 1; tame && i < bytes.size(); i += 2) bytes[i] &= std::byte{0xbf};
  return bytes;
}

std::vector<std::byte> scale_bytes() {
  std::mt19937 random(4);
  std::vector<float> scales(kScales);
  for (auto& scale : scales) scale = static_cast<float>(1 + random() % 1000) * 1e-5F;
  std::vector<std::byte> bytes(kScales * sizeof(float));
  std::memcpy(bytes.data(), scales.data(), bytes.size());
  return bytes;
}

/// A box of elements, in offsets: of its source, its scales and its target.
struct Box {
  Conversion conversion;  ///< Its grid without scales.
  uint64_t rows;
  uint64_t cols;
  uint64_t from;
  uint64_t from_stride;  ///< Elements.
  uint64_t scales;
  uint64_t to;
  uint64_t to_stride;  ///< Bytes.
  uint64_t canonical_cols;
  uint64_t first_index;

  [[nodiscard]] Conversion with_scales(std::byte* base) const {
    auto result = conversion;
    result.grid.scales = reinterpret_cast<float*>(base) + scales;
    return result;
  }
  [[nodiscard]] uint64_t from_size() const { return element_bytes(conversion.from); }
};

/// Boxes of all conversions side by side: odd or well aligned, with and without gaps, of one or
/// many tiles, beginning anywhere in blocks of any size.
class RandomBoxes {
 public:
  RandomBoxes(uint32_t seed, int count, bool aligned_elements)
      : random_(seed), aligned_elements_(aligned_elements) {
    while (std::ssize(boxes_) < count) add();
  }

  [[nodiscard]] const std::vector<Box>& boxes() const { return boxes_; }

  [[nodiscard]] std::vector<StridedCopy> copies(const std::byte* from, std::byte* scales,
                                                std::byte* to) const {
    std::vector<StridedCopy> copies;
    for (const auto& box : boxes_) {
      copies.push_back({from + box.from, to + box.to, box.rows,
                        box.cols * element_bytes(box.conversion.to),
                        box.from_stride * box.from_size(), box.to_stride, box.with_scales(scales)});
    }
    return copies;
  }

  [[nodiscard]] std::vector<DigestView> views(const std::byte* from, std::byte* scales) const {
    std::vector<DigestView> views;
    for (const auto& box : boxes_) {
      DigestView view;
      view.data = from + box.from;
      view.rows = box.rows;
      view.cols = box.cols;
      view.row_stride = box.from_stride;
      view.first_index = box.first_index;
      view.canonical_cols = box.canonical_cols;
      view.key = box.to * 77 + 5;
      view.element_size = static_cast<uint32_t>(box.from_size());
      view.sum = static_cast<uint32_t>(views.size() % kSums);
      // Now and then one that keeps its dtype, so that both kinds share sums.
      if (views.size() % 7 != 0) view.conversion = box.with_scales(scales);
      views.push_back(view);
    }
    return views;
  }

  [[nodiscard]] std::vector<AmaxView> amax_views(const std::byte* from, std::byte* scales) const {
    std::vector<AmaxView> views;
    for (const auto& box : boxes_) {
      views.push_back({from + box.from, box.conversion.from, box.rows, box.cols, box.from_stride,
                       box.with_scales(scales).grid});
    }
    return views;
  }

 private:
  template <class Values>
  auto one_of(const Values& values) {
    return values[random_() % std::size(values)];
  }

  void add() {
    constexpr std::array kFrom{DType::kBf16, DType::kF16, DType::kF32};
    constexpr std::array kTo{DType::kF8E4M3, DType::kF8E4M3, DType::kBf16, DType::kF16,
                             DType::kF32};
    constexpr std::array kCols{0, 1, 3, 8, 15, 24, 128, 200, 256, 1000, 1024, 30'000};
    constexpr std::array kBlocks{3U, 8U, 64U, 128U, 128U, 1000U};
    const bool smooth = random_() % 2 == 0;
    const uint64_t step = smooth ? 16 : 1;
    Box box{};
    box.conversion.from = one_of(kFrom);
    do {
      box.conversion.to = one_of(kTo);
    } while (box.conversion.to == box.conversion.from);
    box.cols = static_cast<uint64_t>(one_of(kCols));
    box.rows = box.cols > 10'000 ? random_() % 6 : random_() % 150;
    const uint64_t gap = random_() % 3 * step;
    box.from_stride = box.cols + gap;
    box.from = random_() % 64 * box.from_size() * step;
    if (!smooth && !aligned_elements_) box.from += random_() % 4;
    auto& grid = box.conversion.grid;
    grid.block = one_of(kBlocks);
    grid.row_in_block = static_cast<uint32_t>(random_() % grid.block);
    grid.col_in_block = static_cast<uint32_t>(random_() % grid.block / step * step);
    grid.row_stride = (grid.col_in_block + box.cols) / grid.block + 1 + random_() % 3;
    box.scales = scales_used_;
    const uint64_t block_rows = (grid.row_in_block + box.rows) / grid.block + 1;
    box.to_stride = box.cols * element_bytes(box.conversion.to) + random_() % 3 * step;
    box.to = bytes_used_ + random_() % 3 * step;
    box.canonical_cols = box.cols + random_() % 3 * (smooth ? 8 : 1);
    box.first_index = random_() % 100 * (smooth ? 8 : 1);
    scales_used_ += block_rows * grid.row_stride;
    bytes_used_ += (box.to_stride * box.rows + 200) / 64 * 64;
    REQUIRE(scales_used_ <= kScales);
    REQUIRE(bytes_used_ <= kTargetBytes);
    REQUIRE(box.from + box.rows * box.from_stride * box.from_size() <= kSourceBytes);
    boxes_.push_back(box);
  }

  std::mt19937 random_;
  bool aligned_elements_;
  std::vector<Box> boxes_;
  uint64_t scales_used_ = 0;
  uint64_t bytes_used_ = 0;
};

std::vector<uint64_t> sums_of(DigestBatch& batch) {
  return {batch.sums().begin(), batch.sums().end()};
}

}  // namespace

TEST_CASE("converting copies write on the GPU what they write on the host") {
  GpuBench gpu;
  HostBench host;
  auto scales = scale_bytes();
  const GpuBuffer gpu_scales(*gpu.device, scales);
  for (const bool tame : {true, false}) {
    const auto from = source_bytes(tame);
    const GpuBuffer gpu_from(*gpu.device, from);
    for (uint32_t seed = 0; seed < 6; ++seed) {
      CAPTURE(seed);
      CAPTURE(tame);
      const RandomBoxes boxes(seed, 80, false);
      std::vector<std::byte> to(kTargetBytes, kPoison);
      const GpuBuffer gpu_to(*gpu.device, to);
      host.kernels->prepare_copies(boxes.copies(from.data(), scales.data(), to.data()))->copy();
      const auto batch = gpu.kernels->prepare_copies(
          boxes.copies(gpu_from.data(), gpu_scales.data(), gpu_to.data()));
      batch->copy();
      gpu.wait();
      auto fetched = gpu_to.fetch();
      fetched.resize(to.size());
      CHECK((fetched == to));
      batch->compare();
      gpu.wait();
      CHECK_FALSE(batch->difference().has_value());
    }
  }
}

TEST_CASE("a comparison on the GPU finds the first wrong converted byte, between plain copies") {
  GpuBench gpu;
  const GpuBuffer scales(*gpu.device, scale_bytes());
  const GpuBuffer from(*gpu.device, source_bytes(true));
  GpuBuffer to(*gpu.device, std::vector<std::byte>(kTargetBytes, kPoison));
  GpuBuffer plain(*gpu.device, named_bytes(5000));
  auto copies = RandomBoxes(3, 40, false).copies(from.data(), scales.data(), to.data());
  copies.insert(copies.begin() + 10, {from.data(), plain.data(), 3, 1000, 1000, 1000});
  copies.push_back({from.data(), plain.data() + 3000, 1, 2000, 2000, 2000});
  const auto batch = gpu.kernels->prepare_copies(copies);
  batch->copy();
  std::mt19937 random(9);
  for (int trial = 0; trial < 60; ++trial) {
    CAPTURE(trial);
    const uint64_t at = random() % copies.size();
    const auto& copy = copies[at];
    if (copy.bytes() == 0) continue;
    const uint64_t row = random() % copy.rows;
    const uint64_t byte = random() % copy.row_bytes;
    gpu.wait();
    const auto place = static_cast<uint64_t>(copy.to + row * copy.to_stride + byte -
                                             (copy.conversion ? to.data() : plain.data()));
    auto& buffer = copy.conversion ? to : plain;
    const auto good = buffer.fetch();
    const std::byte wrong = good[place] ^ std::byte{0x10};
    buffer.write(place, {&wrong, 1});
    batch->compare();
    gpu.wait();
    const auto found = batch->difference();
    buffer.write(place, {&good[place], 1});
    REQUIRE(found.has_value());
    CHECK(found->copy == at);
    CHECK(found->row == row);
    CHECK(found->byte_in_row == byte);
  }
  batch->compare();
  gpu.wait();
  CHECK_FALSE(batch->difference().has_value());
}

TEST_CASE("digests of converted views are the host's") {
  GpuBench gpu;
  HostBench host;
  auto scales = scale_bytes();
  const GpuBuffer gpu_scales(*gpu.device, scales);
  for (const bool tame : {true, false}) {
    const auto from = source_bytes(tame);
    const GpuBuffer gpu_from(*gpu.device, from);
    for (uint32_t seed = 20; seed < 26; ++seed) {
      CAPTURE(seed);
      CAPTURE(tame);
      const RandomBoxes boxes(seed, 80, true);
      const auto wanted =
          host.kernels->prepare_digests(boxes.views(from.data(), scales.data()), kSums);
      const auto batch =
          gpu.kernels->prepare_digests(boxes.views(gpu_from.data(), gpu_scales.data()), kSums);
      wanted->run();
      for (int run = 0; run < 2; ++run) {
        batch->run();
        gpu.wait();
        CHECK(sums_of(*batch) == sums_of(*wanted));
      }
    }
  }
}

TEST_CASE("largest values and scales of blocks are the host's, and no other scale is touched") {
  GpuBench gpu;
  HostBench host;
  for (const bool tame : {true, false}) {
    const auto from = source_bytes(tame);
    const GpuBuffer gpu_from(*gpu.device, from);
    for (uint32_t seed = 40; seed < 46; ++seed) {
      CAPTURE(seed);
      CAPTURE(tame);
      const RandomBoxes boxes(seed, 80, true);
      auto scales = scale_bytes();
      const GpuBuffer gpu_scales(*gpu.device, scales);
      const auto same = [&] {
        gpu.wait();
        auto fetched = gpu_scales.fetch();
        fetched.resize(scales.size());
        return fetched == scales;
      };
      const auto wanted =
          host.kernels->prepare_scales(boxes.amax_views(from.data(), scales.data()));
      const auto batch =
          gpu.kernels->prepare_scales(boxes.amax_views(gpu_from.data(), gpu_scales.data()));
      wanted->find_amax();
      batch->find_amax();
      CHECK(same());
      wanted->finish();
      batch->finish();
      CHECK(same());
      wanted->find_amax();
      batch->find_amax();
      CHECK(same());
    }
  }
}

TEST_CASE("a batch without views has no scales to find") {
  GpuBench gpu;
  const auto batch = gpu.kernels->prepare_scales({});
  batch->find_amax();
  batch->finish();
  gpu.wait();
}
