#include <doctest/doctest.h>

#include <array>
#include <optional>
#include <random>
#include <vector>

#include "gpu/gpu_bench.hpp"
#include "model/digest.hpp"

using namespace awex;
using awex::test::GpuBench;
using awex::test::GpuBuffer;
using awex::test::named_bytes;

namespace {

constexpr std::byte kPoison{0xee};

/// A strided copy between two buffers, in offsets.
struct Shape {
  uint64_t rows;
  uint64_t row_bytes;
  uint64_t from;
  uint64_t to;
  uint64_t from_stride;
  uint64_t to_stride;
};

/// Many copies side by side, each with its own place in a source and a target buffer.
struct CopyCase {
  std::vector<Shape> shapes;
  uint64_t from_bytes = 0;
  uint64_t to_bytes = 0;

  void add(uint64_t rows, uint64_t row_bytes, uint64_t from_gap, uint64_t to_gap,
           uint64_t from_offset, uint64_t to_offset) {
    const Shape shape{rows,
                      row_bytes,
                      from_bytes + from_offset,
                      to_bytes + to_offset,
                      row_bytes + from_gap,
                      row_bytes + to_gap};
    // Places begin at multiples of 32, so that the offsets alone decide the alignment.
    from_bytes += (from_offset + rows * shape.from_stride) / 32 * 32 + 64;
    to_bytes += (to_offset + rows * shape.to_stride) / 32 * 32 + 64;
    shapes.push_back(shape);
  }

  [[nodiscard]] std::vector<StridedCopy> at(const std::byte* from, std::byte* to) const {
    std::vector<StridedCopy> copies;
    for (const auto& s : shapes) {
      copies.push_back({from + s.from, to + s.to, s.rows, s.row_bytes, s.from_stride, s.to_stride});
    }
    return copies;
  }

  [[nodiscard]] std::vector<std::byte> byte_by_byte(const std::vector<std::byte>& from) const {
    std::vector<std::byte> to(to_bytes, kPoison);
    for (const auto& s : shapes) {
      for (uint64_t row = 0; row < s.rows; ++row) {
        for (uint64_t i = 0; i < s.row_bytes; ++i) {
          to[s.to + row * s.to_stride + i] = from[s.from + row * s.from_stride + i];
        }
      }
    }
    return to;
  }
};

/// Rows of a few bytes up to several tiles; with and without gaps; at any or at good alignment.
CopyCase random_copies(uint32_t seed) {
  std::mt19937 random(seed);
  constexpr std::array<uint64_t, 14> kWidths{0,  1,   2,    3,    7,    16,    31,
                                             48, 128, 1000, 4096, 5120, 70001, 300000};
  CopyCase copies;
  for (int i = 0; i < 60; ++i) {
    const uint64_t width = kWidths.at(random() % kWidths.size());
    const uint64_t rows = width > 10000 ? random() % 5 : random() % 300;
    const bool packed = random() % 3 == 0;
    const uint64_t step = uint64_t{1} << (random() % 5);
    const auto gap = [&] { return packed ? 0 : random() % 5 * step; };
    const auto offset = [&] { return random() % 2 * step; };
    const auto from_gap = gap();
    const auto to_gap = gap();
    const auto from_offset = offset();
    copies.add(rows, width, from_gap, to_gap, from_offset, offset());
  }
  return copies;
}

}  // namespace

TEST_CASE("copies of any shape and alignment write what a byte by byte copy writes") {
  GpuBench bench;
  for (uint32_t seed = 0; seed < 12; ++seed) {
    CAPTURE(seed);
    const auto copies = random_copies(seed);
    const auto source = named_bytes(copies.from_bytes);
    GpuBuffer from(*bench.device, source);
    GpuBuffer to(*bench.device, std::vector<std::byte>(copies.to_bytes, kPoison));
    const auto batch = bench.kernels->prepare_copies(copies.at(from.data(), to.data()));
    batch->copy();
    bench.wait();
    CHECK((to.fetch() == copies.byte_by_byte(source)));
    batch->compare();
    bench.wait();
    CHECK_FALSE(batch->difference().has_value());
  }
}

TEST_CASE("a comparison finds the first of several differences, and none after they are mended") {
  GpuBench bench;
  std::mt19937 random(7);
  CopyCase copies;
  copies.add(0, 16, 0, 0, 0, 0);
  copies.add(5, 70001, 3, 0, 1, 0);
  copies.add(300, 48, 16, 0, 0, 16);
  copies.add(1, 300000, 0, 0, 0, 0);
  copies.add(40, 1000, 8, 24, 8, 0);
  const auto source = named_bytes(copies.from_bytes);
  const auto good = copies.byte_by_byte(source);
  GpuBuffer from(*bench.device, source);
  GpuBuffer to(*bench.device, good);
  const auto batch = bench.kernels->prepare_copies(copies.at(from.data(), to.data()));
  const auto compare = [&] {
    batch->compare();
    bench.wait();
    return batch->difference();
  };
  CHECK_FALSE(compare().has_value());
  for (int trial = 0; trial < 40; ++trial) {
    CAPTURE(trial);
    std::optional<Difference> expected;
    for (int i = 0; i < 3; ++i) {
      const uint64_t copy = 1 + random() % 4;
      const auto& shape = copies.shapes[copy];
      const Difference damage{copy, random() % shape.rows, random() % shape.row_bytes};
      const uint64_t at = shape.to + damage.row * shape.to_stride + damage.byte_in_row;
      const std::byte wrong = ~good[at];
      to.write(at, {&wrong, 1});
      const auto key = [](const Difference& d) { return std::array{d.copy, d.row, d.byte_in_row}; };
      if (!expected || key(damage) < key(*expected)) expected = damage;
    }
    const auto found = compare();
    REQUIRE(found.has_value());
    CHECK(found->copy == expected->copy);
    CHECK(found->row == expected->row);
    CHECK(found->byte_in_row == expected->byte_in_row);
    to.write(0, good);
    CHECK_FALSE(compare().has_value());
  }
}

namespace {

/// Sums a view row by row on the host, in a host copy of the memory that begins at `base`.
uint64_t digest_by_rows(const DigestView& view, const std::byte* base,
                        const std::vector<std::byte>& memory) {
  uint64_t sum = 0;
  const auto first = static_cast<uint64_t>(view.data - base);
  for (uint64_t row = 0; row < view.rows; ++row) {
    const std::span bytes(memory.data() + first + row * view.row_stride * view.element_size,
                          view.cols * view.element_size);
    sum += digest_elements(view.key, view.element_size,
                           view.first_index + row * view.canonical_cols, bytes);
  }
  return sum;
}

/// A view of random shape: whole or ragged groups, packed or not, well aligned or just enough.
DigestView random_view(std::mt19937& random, const std::byte* memory, uint32_t sum_count) {
  const bool ragged = random() % 2 == 0;
  const uint64_t step = ragged ? 1 : 8;
  const bool packed = random() % 3 == 0;
  DigestView view;
  view.element_size = 1U << (random() % 3);
  view.rows = random() % 5 == 0 ? random() % 3 : 1 + random() % 200;
  view.cols = random() % 7 == 0 ? random() % 12 : random() % 260 * step;
  view.row_stride = view.cols + (packed ? 0 : random() % 4 * step);
  view.canonical_cols = view.cols + (packed ? 0 : random() % 9 * step);
  view.first_index = random() % 1000 * step + (uint64_t{random()} << 3 << (random() % 20));
  view.key = mix64(random());
  view.sum = static_cast<uint32_t>(random() % sum_count);
  view.data = memory + random() % 100 * step * view.element_size;
  return view;
}

}  // namespace

TEST_CASE("digests of views of any shape are the sums of the formula") {
  GpuBench bench;
  std::mt19937 random(11);
  const auto memory = named_bytes(4 << 20);
  const GpuBuffer buffer(*bench.device, memory);
  constexpr uint32_t kSums = 17;
  for (int trial = 0; trial < 12; ++trial) {
    CAPTURE(trial);
    std::vector<DigestView> views;
    std::vector<uint64_t> expected(kSums, 0);
    for (int i = 0; i < 80; ++i) {
      views.push_back(random_view(random, buffer.data(), kSums));
      expected[views.back().sum] += digest_by_rows(views.back(), buffer.data(), memory);
    }
    const auto batch = bench.kernels->prepare_digests(views, kSums);
    for (int run = 0; run < 2; ++run) {
      batch->run();
      bench.wait();
      const auto sums = batch->sums();
      CHECK(std::vector<uint64_t>(sums.begin(), sums.end()) == expected);
    }
  }
}

TEST_CASE("a digest over many tiles, and the extremes of element values") {
  GpuBench bench;
  auto memory = named_bytes(3'000'000);
  std::fill_n(memory.begin(), 100'000, std::byte{0xff});
  std::fill_n(memory.begin() + 100'000, 100'000, std::byte{0});
  const GpuBuffer buffer(*bench.device, memory);
  for (const uint32_t size : {1U, 2U, 4U}) {
    CAPTURE(size);
    for (const uint64_t elements : {memory.size() / size, memory.size() / size - 3}) {
      CAPTURE(elements);
      const DigestView view{buffer.data(), 1, elements, elements, 0, elements, 99, size, 0};
      const auto batch = bench.kernels->prepare_digests({&view, 1}, 1);
      batch->run();
      bench.wait();
      CHECK(batch->sums()[0] == digest_by_rows(view, buffer.data(), memory));
    }
  }
}

TEST_CASE("batches of nothing do nothing") {
  GpuBench bench;
  const auto copies = bench.kernels->prepare_copies({});
  copies->copy();
  copies->compare();
  const auto digests = bench.kernels->prepare_digests({}, 3);
  digests->run();
  bench.wait();
  CHECK_FALSE(copies->difference().has_value());
  REQUIRE(digests->sums().size() == 3);
  CHECK((digests->sums()[0] | digests->sums()[1] | digests->sums()[2]) == 0);
}
