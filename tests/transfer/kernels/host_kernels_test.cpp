#include "transfer/kernels/host_kernels.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <tuple>
#include <vector>

#include "base/error.hpp"
#include "model/digest.hpp"
#include "support/proven_case.hpp"
#include "transfer/kernels/host_tiles.hpp"

using namespace awex;

namespace {

constexpr std::byte kPoison{0xee};

/// A value that names its index, so that a misplaced byte shows where it came from.
std::byte named(uint64_t index) {
  return static_cast<std::byte>((index * 0x9e3779b97f4a7c15U) >> 56);
}

std::vector<std::byte> named_bytes(uint64_t count) {
  std::vector<std::byte> bytes(count);
  for (uint64_t i = 0; i < count; ++i) bytes[i] = named(i);
  return bytes;
}

/// A batch of copies from one buffer to another, given by offsets.
struct Shape {
  uint64_t rows;
  uint64_t row_bytes;
  uint64_t from_gap;  ///< Bytes between rows.
  uint64_t to_gap;
  uint64_t from_offset;  ///< Misalignment of the first row.
  uint64_t to_offset;
};

struct CopyCase {
  std::vector<std::byte> from;
  std::vector<std::byte> to;
  std::vector<std::byte> expected;  ///< What a byte by byte copy makes of `to`.
  std::vector<StridedCopy> copies;

  explicit CopyCase(const std::vector<Shape>& shapes) {
    uint64_t from_bytes = 0;
    uint64_t to_bytes = 0;
    for (const auto& shape : shapes) {
      from_bytes += 64 + shape.from_offset + shape.rows * (shape.row_bytes + shape.from_gap);
      to_bytes += 64 + shape.to_offset + shape.rows * (shape.row_bytes + shape.to_gap);
    }
    from = named_bytes(from_bytes);
    to.assign(to_bytes, kPoison);
    expected = to;
    uint64_t from_at = 0;
    uint64_t to_at = 0;
    for (const auto& shape : shapes) {
      add(shape, from_at + shape.from_offset, to_at + shape.to_offset);
      from_at += 64 + shape.from_offset + shape.rows * (shape.row_bytes + shape.from_gap);
      to_at += 64 + shape.to_offset + shape.rows * (shape.row_bytes + shape.to_gap);
    }
  }

 private:
  void add(const Shape& shape, uint64_t from_at, uint64_t to_at) {
    const StridedCopy copy{from.data() + from_at,
                           to.data() + to_at,
                           shape.rows,
                           shape.row_bytes,
                           shape.row_bytes + shape.from_gap,
                           shape.row_bytes + shape.to_gap};
    for (uint64_t row = 0; row < shape.rows; ++row) {
      for (uint64_t i = 0; i < shape.row_bytes; ++i) {
        expected[to_at + row * copy.to_stride + i] = from[from_at + row * copy.from_stride + i];
      }
    }
    copies.push_back(copy);
  }
};

struct Bench {
  explicit Bench(size_t threads)
      : device(make_host_device(0, 1)), kernels(make_host_kernels(*device, threads)) {}

  std::unique_ptr<Device> device;
  std::unique_ptr<Kernels> kernels;
  NoMonitor monitor;

  void wait() { kernels->wait("the test", Deadline(Seconds(60)), monitor); }

  std::optional<Difference> compare(CopyBatch& batch) {
    batch.compare();
    wait();
    return batch.difference();
  }

  void check_copies(const std::vector<Shape>& shapes) {
    CopyCase c(shapes);
    const auto batch = kernels->prepare_copies(c.copies);
    batch->copy();
    wait();
    CHECK((c.to == c.expected));
    CHECK_FALSE(compare(*batch).has_value());
  }
};

/// Many shapes at once: tiny rows, rows of several tiles, with and without gaps, any alignment.
std::vector<Shape> random_shapes(std::mt19937& random, size_t count) {
  const uint64_t widths[] = {0, 1, 2, 3, 7, 16, 31, 128, 1000, 4096, 70001, 300000};
  std::vector<Shape> shapes;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t width = widths[random() % std::size(widths)];
    const uint64_t rows = width > 10000 ? random() % 4 : random() % 200;
    const bool packed = random() % 3 == 0;
    shapes.push_back({rows, width, packed ? 0 : random() % 40, packed ? 0 : random() % 40,
                      random() % 17, random() % 17});
  }
  return shapes;
}

}  // namespace

TEST_CASE("tiles cover every cell exactly once, in row-major order") {
  for (const uint64_t rows : {0, 1, 2, 7, 100}) {
    for (const uint64_t cols : {0, 1, 3, 10, 64, 65, 1000}) {
      for (const uint64_t tile_cells : {1, 10, 64, 5000}) {
        CAPTURE(rows);
        CAPTURE(cols);
        CAPTURE(tile_cells);
        std::vector<HostTile> tiles;
        append_tiles(tiles, 3, rows, cols, tile_cells);
        std::vector<int> visits(rows * cols, 0);
        uint64_t last_first_cell = 0;
        bool good = true;
        for (const auto& tile : tiles) {
          const uint64_t first_cell = tile.first_row * cols + tile.first_col;
          good = good && tile.item == 3 && first_cell >= last_first_cell &&
                 tile.rows * tile.cols <= tile_cells && tile.rows * tile.cols > 0;
          last_first_cell = first_cell;
          for (uint64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
            for (uint64_t col = 0; col < tile.cols; ++col) {
              ++visits.at(row * cols + tile.first_col + col);
            }
          }
        }
        CHECK(good);
        CHECK(visits == std::vector<int>(rows * cols, 1));
      }
    }
  }
}

TEST_CASE(
    "loads hold all tiles in their order, each no more than its bytes, and none could take in the "
    "next one's first tile") {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    CAPTURE(round);
    HostTiles joined;
    std::vector<HostTile> apart;
    std::vector<uint64_t> cell_bytes;
    for (uint64_t item = 0; item < 20; ++item) {
      const uint64_t rows = random() % 20;
      const uint64_t cols = random() % 2 == 0 ? random() % 50 : random() % 5000;
      cell_bytes.push_back(uint64_t{1} << random() % 20);
      joined.add(item, rows, cols, cell_bytes.back());
      append_tiles(apart, item, rows, cols, std::max<uint64_t>(1, (256 << 10) / cell_bytes.back()));
    }
    const auto bytes = [&](const HostTile& tile) {
      return tile.rows * tile.cols * cell_bytes.at(tile.item);
    };
    size_t next = 0;
    uint64_t before = 0;
    for (size_t i = 0; i < joined.loads(); ++i) {
      uint64_t total = 0;
      REQUIRE_FALSE(joined.load(i).empty());
      CHECK((i == 0 || before + bytes(joined.load(i).front()) > HostTiles::kLoadBytes));
      for (const auto& tile : joined.load(i)) {
        const auto& wanted = apart.at(next++);
        CHECK(
            std::tuple(tile.item, tile.first_row, tile.rows, tile.first_col, tile.cols) ==
            std::tuple(wanted.item, wanted.first_row, wanted.rows, wanted.first_col, wanted.cols));
        total += bytes(tile);
      }
      CHECK((total <= HostTiles::kLoadBytes || joined.load(i).size() == 1));
      before = total;
    }
    CHECK(next == apart.size());
  }
}

TEST_CASE("rows that go past the caches are exact at every place in a cache line") {
  Bench bench(2);
  for (const uint64_t width : {255, 256, 257, 319, 320, 383, 384, 700, 4096, 5001}) {
    CAPTURE(width);
    for (uint64_t to_offset = 0; to_offset < 65; ++to_offset) {
      bench.check_copies(
          {{7, width, 3, 0, to_offset % 7, to_offset}, {2, width, 0, 5, 0, to_offset}});
    }
  }
}

TEST_CASE("copies of every alignment of both sides are exact") {
  Bench bench(2);
  for (uint64_t from_offset = 0; from_offset < 17; ++from_offset) {
    for (uint64_t to_offset = 0; to_offset < 17; ++to_offset) {
      bench.check_copies({{5, 33, 1, 2, from_offset, to_offset}});
    }
  }
}

TEST_CASE("batches of many shapes are exact for any number of threads") {
  for (const size_t threads : {0, 1, 2, 5}) {
    Bench bench(threads);
    for (uint32_t seed = 0; seed < 10; ++seed) {
      CAPTURE(threads);
      CAPTURE(seed);
      std::mt19937 random(seed);
      bench.check_copies(random_shapes(random, random() % 12));
    }
  }
}

TEST_CASE("copies of several tiles in one row, and of one run of many rows, are exact") {
  Bench bench(3);
  bench.check_copies({{1, (1 << 20) + 13, 0, 0, 1, 3}});
  bench.check_copies({{3, (600 << 10) + 1, 5, 0, 0, 7}});
  bench.check_copies({{5000, 130, 0, 0, 3, 0}});
}

TEST_CASE("a prepared batch can be run again with other bytes") {
  Bench bench(2);
  CopyCase c({{10, 100, 3, 0, 1, 2}});
  const auto batch = bench.kernels->prepare_copies(c.copies);
  batch->copy();
  c.from[1 + 5] ^= std::byte{0x10};
  CHECK(bench.compare(*batch).has_value());
  batch->copy();
  CHECK_FALSE(bench.compare(*batch).has_value());
}

TEST_CASE("a comparison finds the first difference, wherever it is, and says where") {
  std::mt19937 random(1);
  for (int round = 0; round < 60; ++round) {
    CAPTURE(round);
    Bench bench(1 + random() % 3);
    CopyCase c(random_shapes(random, 6));
    c.to = c.expected;
    const auto batch = bench.kernels->prepare_copies(c.copies);
    REQUIRE_FALSE(bench.compare(*batch).has_value());

    std::optional<Difference> first;
    for (int i = 0; i < 3; ++i) {
      const uint64_t at = random() % c.copies.size();
      const auto& copy = c.copies[at];
      if (copy.bytes() == 0) continue;
      const Difference here{at, random() % copy.rows, random() % copy.row_bytes};
      copy.to[here.row * copy.to_stride + here.byte_in_row] ^= std::byte{0x80};
      const auto key = [](const Difference& d) { return std::tuple(d.copy, d.row, d.byte_in_row); };
      if (!first || key(here) < key(*first)) first = here;
    }
    const auto found = bench.compare(*batch);
    REQUIRE(found.has_value() == first.has_value());
    if (!first) continue;
    CHECK(found->copy == first->copy);
    CHECK(found->row == first->row);
    CHECK(found->byte_in_row == first->byte_in_row);
  }
}

TEST_CASE("bytes between the rows are neither copied nor compared") {
  Bench bench(1);
  CopyCase c({{4, 8, 8, 8, 0, 0}});
  const auto batch = bench.kernels->prepare_copies(c.copies);
  batch->copy();
  c.to[9] ^= std::byte{1};
  CHECK_FALSE(bench.compare(*batch).has_value());
}

TEST_CASE("an empty batch does nothing") {
  Bench bench(2);
  const auto batch = bench.kernels->prepare_copies({});
  batch->copy();
  CHECK_FALSE(bench.compare(*batch).has_value());
  const auto digests = bench.kernels->prepare_digests({}, 2);
  digests->run();
  CHECK(digests->sums().size() == 2);
  CHECK(digests->sums()[1] == 0);
  CHECK(bench.kernels->stream(Stream::kMain) == nullptr);
}

namespace {

uint64_t bits_at(const std::byte* data, uint32_t element_size) {
  uint64_t bits = 0;
  std::memcpy(&bits, data, element_size);
  return bits;
}

/// The sum of a view's terms, element by element.
uint64_t naive_sum(const DigestView& view) {
  uint64_t sum = 0;
  for (uint64_t row = 0; row < view.rows; ++row) {
    for (uint64_t col = 0; col < view.cols; ++col) {
      const auto* element = view.data + (row * view.row_stride + col) * view.element_size;
      sum += digest_term(view.key, view.first_index + row * view.canonical_cols + col,
                         bits_at(element, view.element_size));
    }
  }
  return sum;
}

std::vector<uint64_t> digest(size_t threads, const std::vector<DigestView>& views,
                             uint32_t sum_count) {
  Bench bench(threads);
  const auto batch = bench.kernels->prepare_digests(views, sum_count);
  batch->run();
  batch->run();  // from zero each time
  bench.wait();
  return {batch->sums().begin(), batch->sums().end()};
}

}  // namespace

TEST_CASE("digests of random views equal the plain sum of their terms, sum by sum") {
  const auto memory = named_bytes(8 << 20);
  const uint64_t widths[] = {0, 1, 3, 8, 17, 64, 1000, 70003};
  for (uint32_t seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    constexpr uint32_t kSums = 3;
    std::vector<uint64_t> expected(kSums, 0);
    std::vector<DigestView> views;
    for (int i = 0; i < 10; ++i) {
      DigestView view;
      view.element_size = 1U << random() % 3;
      view.cols = widths[random() % std::size(widths)];
      view.rows = view.cols > 10000 ? random() % 4 : random() % 60;
      const bool packed = random() % 3 == 0;
      view.row_stride = view.cols + (packed ? 0 : random() % 9);
      view.canonical_cols = view.cols + (packed ? 0 : random() % 9);
      view.first_index = random() % 1000;
      view.data = memory.data() + random() % 100 * view.element_size;
      view.key = random();
      view.sum = static_cast<uint32_t>(random() % kSums);
      expected[view.sum] += naive_sum(view);
      views.push_back(view);
    }
    CHECK(digest(1 + seed % 3, views, kSums) == expected);
  }
}

TEST_CASE("a tensor's digest does not depend on how it is cut into boxes") {
  constexpr uint64_t kRows = 37;
  constexpr uint64_t kCols = 53;
  const auto memory = named_bytes(kRows * kCols * 2);
  const auto box = [&](uint64_t row, uint64_t rows, uint64_t col, uint64_t cols) {
    return DigestView{memory.data() + (row * kCols + col) * 2,
                      rows,
                      cols,
                      kCols,
                      row * kCols + col,
                      kCols,
                      42,
                      2,
                      0};
  };
  const auto whole = digest(1, {box(0, kRows, 0, kCols)}, 1);
  CHECK(whole == digest(2, {box(0, 10, 0, kCols), box(10, 27, 0, kCols)}, 1));
  CHECK(whole == digest(2, {box(0, kRows, 0, 13), box(0, kRows, 13, 40)}, 1));
  CHECK(whole == digest(3, {box(0, 9, 0, 5), box(9, 28, 0, 5), box(0, kRows, 5, 48)}, 1));
  CHECK(whole != digest(1, {box(0, kRows, 0, kCols - 1)}, 1));
}

TEST_CASE("a sum that does not exist is refused") {
  Bench bench(1);
  DigestView view;
  view.element_size = 2;
  view.sum = 2;
  CHECK_THROWS_AS(static_cast<void>(bench.kernels->prepare_digests({&view, 1}, 2)), Error);
}

TEST_CASE("proven copies are digested as they are in memory after all of them, run after run") {
  Bench bench(3);
  for (uint32_t seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    const test::ProvenCase c(seed, 1 + static_cast<int>(seed), 30'000);
    std::vector<std::byte> from(c.from_bytes());
    std::vector<std::byte> to(c.to_bytes(), kPoison);
    auto expected = to;
    const auto batch = bench.kernels->prepare_proven_copies(
        c.copies(from.data(), to.data()), c.views(from.data(), to.data()), c.kSums);
    for (uint64_t run = 0; run < 3; ++run) {
      CAPTURE(run);
      for (uint64_t i = 0; i < from.size(); ++i) from[i] = named(i + run * 1'000'003);
      c.copy(from, expected);
      batch->run();
      bench.wait();
      const auto sums = batch->sums();
      CHECK((to == expected));
      CHECK(std::vector<uint64_t>(sums.begin(), sums.end()) == c.sums(from, expected));
    }
  }
}
