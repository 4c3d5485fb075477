#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "base/error.hpp"
#include "model/digest.hpp"
#include "support/naive_convert.hpp"
#include "transfer/kernels/host_kernels.hpp"

using namespace awex;
using namespace awex::test;

namespace {

constexpr std::byte kPoison{0xee};

constexpr std::array kSources{DType::kBf16, DType::kF16, DType::kF32};
constexpr std::array kTargets{DType::kBf16, DType::kF16, DType::kF32, DType::kF8E4M3};

/// Values of all sizes that e4m3 tells apart, and now and then one from the edges.
float random_value(std::mt19937& random) {
  constexpr std::array kEdges{0.0F, -0.0F, 1e-30F, 1e4F, -70000.0F, 1e38F, HUGE_VALF, NAN};
  if (random() % 50 == 0) return kEdges.at(random() % kEdges.size());
  return std::ldexp(static_cast<float>(random() % 4001) - 2000.0F,
                    -static_cast<int>(random() % 20));
}

/// A canonical matrix with a scale for each of its blocks, and a box of it in a memory of its own.
class BoxInMatrix {
 public:
  BoxInMatrix(std::mt19937& random, DType dtype, uint32_t block, uint64_t rows, uint64_t cols)
      : dtype_(dtype),
        size_(element_bytes(dtype)),
        block_(block),
        rows_(rows),
        cols_(cols),
        first_row_(random() % (3 * block)),
        first_col_(random() % (3 * block)),
        stride_((cols_ + random() % 2 * (random() % 9)) * size_),
        misalignment_(random() % 4),
        scale_cols_((first_col_ + cols_) / block + 2),
        memory_(misalignment_ + rows_ * stride_ + 64, kPoison),
        scales_(((first_row_ + rows_) / block + 2) * scale_cols_) {
    for (auto& scale : scales_) scale = std::ldexp(static_cast<float>(256 + random() % 256), -15);
    for (uint64_t row = 0; row < rows_; ++row) {
      for (uint64_t col = 0; col < cols_; ++col) {
        const auto value = random_value(random);
        const uint32_t bits = naive_bits(dtype, static_cast<double>(value));
        std::memcpy(memory_.data() + place(row, col), &bits, size_);
      }
    }
  }

  [[nodiscard]] uint64_t rows() const { return rows_; }
  [[nodiscard]] uint64_t cols() const { return cols_; }
  [[nodiscard]] uint64_t stride_bytes() const { return stride_; }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] std::byte* data() { return memory_.data() + misalignment_; }
  [[nodiscard]] std::vector<float>& scales() { return scales_; }

  [[nodiscard]] float& scale_at(uint64_t row, uint64_t col) {
    return scales_[(first_row_ + row) / block_ * scale_cols_ + (first_col_ + col) / block_];
  }
  [[nodiscard]] uint32_t bits_at(uint64_t row, uint64_t col) const {
    return load_bits(memory_.data() + place(row, col), size_);
  }

  [[nodiscard]] ScaleGrid grid() {
    return {&scale_at(0, 0), scale_cols_, block_, static_cast<uint32_t>(first_row_ % block_),
            static_cast<uint32_t>(first_col_ % block_)};
  }

  /// What the element must become.
  [[nodiscard]] uint32_t wanted(uint64_t row, uint64_t col, DType to) {
    return naive_conversion(dtype_, to, bits_at(row, col),
                            to == DType::kF8E4M3 ? scale_at(row, col) : 1.0F);
  }

 private:
  [[nodiscard]] uint64_t place(uint64_t row, uint64_t col) const {
    return misalignment_ + row * stride_ + col * size_;
  }

  DType dtype_;
  uint64_t size_;
  uint32_t block_;
  uint64_t rows_;
  uint64_t cols_;
  uint64_t first_row_;
  uint64_t first_col_;
  uint64_t stride_;
  uint64_t misalignment_;
  uint64_t scale_cols_;
  std::vector<std::byte> memory_;
  std::vector<float> scales_;
};

struct Bench {
  explicit Bench(size_t threads)
      : device(make_host_device(0, 1)), kernels(make_host_kernels(*device, threads)) {}

  std::unique_ptr<Device> device;
  std::unique_ptr<Kernels> kernels;
};

/// A converting copy of a box into poisoned memory.
struct ConvertingCopy {
  ConvertingCopy(std::mt19937& random, BoxInMatrix& from, DType dtype)
      : box(from), to(dtype), size(element_bytes(dtype)) {
    const uint64_t row_bytes = box.cols() * size;
    const uint64_t stride = row_bytes + random() % 2 * (random() % 7);
    memory.assign(8 + box.rows() * stride, kPoison);
    copy = {box.data(),
            memory.data() + random() % 8,
            box.rows(),
            row_bytes,
            box.stride_bytes(),
            stride,
            Conversion{box.dtype(), to, to == DType::kF8E4M3 ? box.grid() : ScaleGrid{}}};
  }

  [[nodiscard]] std::byte* place(uint64_t row, uint64_t col) const {
    return copy.to + row * copy.to_stride + col * size;
  }

  /// Elements that are not what they must be, and bytes outside that are no longer poisoned.
  [[nodiscard]] uint64_t wrong() const {
    auto outside = memory;
    uint64_t count = 0;
    for (uint64_t row = 0; row < copy.rows; ++row) {
      for (uint64_t col = 0; col < box.cols(); ++col) {
        const uint32_t held = load_bits(place(row, col), size);
        const uint32_t wanted = box.wanted(row, col, to);
        const bool both_nan = naive_is_nan(to, held) && naive_is_nan(to, wanted);
        count += held != wanted && !(both_nan && to != DType::kF8E4M3);
        std::fill_n(outside.begin() + (place(row, col) - memory.data()), size, kPoison);
      }
    }
    return count + static_cast<uint64_t>(std::count_if(outside.begin(), outside.end(),
                                                       [](std::byte b) { return b != kPoison; }));
  }

  BoxInMatrix& box;
  DType to;
  uint64_t size;
  std::vector<std::byte> memory;
  StridedCopy copy;
};

/// Calls check(random, source dtype, target dtype, block) for all pairs that kernels convert.
template <class Check>
void for_all_conversions(const Check& check) {
  std::mt19937 random(11);
  for (const auto from : kSources) {
    for (const auto to : kTargets) {
      if (from == to) continue;
      for (const uint32_t block : {3U, 8U, 128U}) {
        CAPTURE(dtype_name(from));
        CAPTURE(dtype_name(to));
        CAPTURE(block);
        for (int i = 0; i < 6; ++i) check(random, from, to, block);
      }
    }
  }
}

std::optional<Difference> compare(CopyBatch& batch) {
  batch.compare();
  return batch.difference();
}

}  // namespace

TEST_CASE("converting copies write what converting element by element gives, and nothing else") {
  Bench bench(2);
  for_all_conversions([&](std::mt19937& random, DType from, DType to, uint32_t block) {
    BoxInMatrix box(random, from, block, random() % 300, random() % 300);
    const ConvertingCopy converting(random, box, to);
    const auto batch = bench.kernels->prepare_copies({&converting.copy, 1});
    batch->copy();
    CHECK(converting.wrong() == 0);
    CHECK_FALSE(compare(*batch).has_value());
  });
}

TEST_CASE("converting copies of several tiles a row are exact") {
  Bench bench(3);
  std::mt19937 random(5);
  for (const auto to : {DType::kF8E4M3, DType::kF16}) {
    for (const uint32_t block : {128U, 65536U}) {
      BoxInMatrix box(random, DType::kF32, block, 2, 150'001);
      const ConvertingCopy converting(random, box, to);
      bench.kernels->prepare_copies({&converting.copy, 1})->copy();
      CHECK(converting.wrong() == 0);
    }
  }
}

TEST_CASE("a comparison finds the first wrong converted byte among plain and converting copies") {
  Bench bench(2);
  for_all_conversions([&](std::mt19937& random, DType from, DType to, uint32_t block) {
    BoxInMatrix box(random, from, block, random() % 90, random() % 90);
    const ConvertingCopy converting(random, box, to);
    const std::vector<std::byte> plain_from(1000, std::byte{7});
    std::vector<std::byte> plain_to(1000, kPoison);
    const StridedCopy plain{plain_from.data(), plain_to.data(), 1, 1000, 1000, 1000};
    const std::vector<StridedCopy> copies{plain, converting.copy, plain};
    const auto batch = bench.kernels->prepare_copies(copies);
    batch->copy();
    REQUIRE_FALSE(compare(*batch).has_value());
    if (converting.copy.bytes() == 0) return;
    const uint64_t row = random() % converting.copy.rows;
    const uint64_t byte = random() % converting.copy.row_bytes;
    auto* const wrong = converting.copy.to + row * converting.copy.to_stride + byte;
    *wrong ^= std::byte{1};
    auto& last = converting.copy.to[(converting.copy.rows - 1) * converting.copy.to_stride +
                                    converting.copy.row_bytes - 1];
    if (&last != wrong) last ^= std::byte{0x40};
    const auto found = compare(*batch);
    REQUIRE(found.has_value());
    CHECK(found->copy == 1);
    CHECK(found->row == row);
    CHECK(found->byte_in_row == byte);
  });
}

TEST_CASE("digests of converted views are those of the converted elements") {
  Bench bench(2);
  for_all_conversions([&](std::mt19937& random, DType from, DType to, uint32_t block) {
    BoxInMatrix box(random, from, block, random() % 300, random() % 300);
    // Converted by a copy, so that NaNs have the same bits.
    const ConvertingCopy converting(random, box, to);
    bench.kernels->prepare_copies({&converting.copy, 1})->copy();
    DigestView view;
    view.data = box.data();
    view.rows = box.rows();
    view.cols = box.cols();
    view.row_stride = box.stride_bytes() / element_bytes(from);
    view.first_index = random() % 1000;
    view.canonical_cols = box.cols() + random() % 2 * (random() % 50);
    view.key = random();
    view.element_size = static_cast<uint32_t>(element_bytes(from));
    view.sum = 1;
    view.conversion = converting.copy.conversion;
    uint64_t wanted = 0;
    for (uint64_t row = 0; row < box.rows(); ++row) {
      for (uint64_t col = 0; col < box.cols(); ++col) {
        wanted += digest_term(view.key, view.first_index + row * view.canonical_cols + col,
                              load_bits(converting.place(row, col), converting.size));
      }
    }
    const auto digests = bench.kernels->prepare_digests({&view, 1}, 2);
    digests->run();
    CHECK(digests->sums()[0] == 0);
    CHECK(digests->sums()[1] == wanted);
  });
}

namespace {

/// The largest absolute value of the box's elements that lie in each block, all in one list of the
/// matrix's scales; what is no element of the box has no part in it.
std::vector<float> naive_amax(BoxInMatrix& box) {
  auto kept = box.scales();
  std::vector<bool> touched(kept.size(), false);
  for (uint64_t row = 0; row < box.rows(); ++row) {
    for (uint64_t col = 0; col < box.cols(); ++col) {
      const auto at = static_cast<size_t>(&box.scale_at(row, col) - box.scales().data());
      const auto value =
          static_cast<float>(std::abs(naive_value(box.dtype(), box.bits_at(row, col))));
      if (!touched[at]) kept[at] = 0;
      touched[at] = true;
      if (std::isnan(value) || value > kept[at]) kept[at] = value;
    }
  }
  return kept;
}

bool same_values(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  }
  return a.size() == b.size();
}

}  // namespace

TEST_CASE("the largest absolute value of every touched block is found, and becomes its scale") {
  std::mt19937 random(2);
  for (int round = 0; round < 60; ++round) {
    CAPTURE(round);
    Bench bench(1 + round % 3);
    std::vector<BoxInMatrix> boxes;
    for (const auto dtype : kSources) {
      for (const uint32_t block : {3U, 8U, 128U})
        boxes.emplace_back(random, dtype, block, random() % 200, random() % 200);
    }
    std::vector<AmaxView> views;
    std::vector<std::vector<float>> wanted;
    for (auto& box : boxes) {
      views.push_back({box.data(), box.dtype(), box.rows(), box.cols(),
                       box.stride_bytes() / element_bytes(box.dtype()), box.grid()});
      wanted.push_back(naive_amax(box));
    }
    const auto batch = bench.kernels->prepare_scales(views);
    for (int run = 0; run < 2; ++run) {  // from zero each time
      batch->find_amax();
      for (size_t i = 0; i < boxes.size(); ++i) CHECK(same_values(boxes[i].scales(), wanted[i]));
    }
    batch->finish();
    for (size_t i = 0; i < boxes.size(); ++i) {
      std::vector<bool> touched(wanted[i].size(), false);
      for (uint64_t row = 0; row < boxes[i].rows(); ++row) {
        for (uint64_t col = 0; col < boxes[i].cols(); ++col) {
          touched[static_cast<size_t>(&boxes[i].scale_at(row, col) - boxes[i].scales().data())] =
              true;
        }
      }
      for (size_t at = 0; at < touched.size(); ++at) {
        if (touched[at]) wanted[i][at] = std::max(wanted[i][at], 1e-4F) / 448.0F;
      }
      CHECK(same_values(boxes[i].scales(), wanted[i]));
    }
  }
}

TEST_CASE("a NaN in a block makes its scale NaN, however large the others are") {
  Bench bench(1);
  std::vector<float> elements(16, HUGE_VALF);
  elements[5] = NAN;
  float scale = 0;
  const AmaxView view{reinterpret_cast<const std::byte*>(elements.data()),
                      DType::kF32,
                      4,
                      4,
                      4,
                      {&scale, 1, 4, 0, 0}};
  const auto batch = bench.kernels->prepare_scales({&view, 1});
  batch->find_amax();
  CHECK(std::isnan(scale));
  batch->finish();
  CHECK(std::bit_cast<uint32_t>(scale) == 0x7fc00000U);
}

TEST_CASE("what no kernel does is refused when it is prepared") {
  Bench bench(1);
  float scale = 1;
  const std::vector<std::byte> from(64);
  std::vector<std::byte> to(64);
  const ScaleGrid grid{&scale, 1, 4, 0, 0};
  const auto refused = [&](const Conversion& conversion) {
    const StridedCopy copy{from.data(), to.data(), 1, 4, 16, 16, conversion};
    DigestView view;
    view.data = from.data();
    view.rows = 1;
    view.cols = 4;
    view.element_size = static_cast<uint32_t>(element_bytes(conversion.from));
    view.conversion = conversion;
    CHECK_THROWS_AS(static_cast<void>(bench.kernels->prepare_digests({&view, 1}, 1)), Error);
    CHECK_THROWS_AS(static_cast<void>(bench.kernels->prepare_copies({&copy, 1})), Error);
  };
  refused({DType::kBf16, DType::kBf16, {}});
  refused({DType::kF8E4M3, DType::kBf16, {}});
  refused({DType::kBf16, DType::kF8E5M2, grid});
  refused({DType::kBf16, DType::kF8E4M3, {}});
  refused({DType::kBf16, DType::kF8E4M3, {&scale, 1, 4, 4, 0}});
  refused({DType::kBf16, DType::kF8E4M3, {&scale, 1, 0xffffffffU, 0, 0}});
  const AmaxView view{from.data(), DType::kF8E4M3, 1, 4, 4, grid};
  CHECK_THROWS_AS(static_cast<void>(bench.kernels->prepare_scales({&view, 1})), Error);
}
