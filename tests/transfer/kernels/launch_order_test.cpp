#include "transfer/kernels/launch_order.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <set>
#include <vector>

using namespace awex;
using namespace awex::cuda;

namespace {

/// A rectangle of units in memory.
TouchedRows rows_at(uint64_t begin, uint64_t rows, uint64_t row_units, uint32_t unit_bytes,
                    uint64_t stride) {
  TouchedRows touched;
  touched.begin = begin;
  touched.row_bytes = row_units * unit_bytes;
  touched.stride = stride;
  touched.grid = {rows * row_units, row_units, 0};
  touched.unit_bytes = unit_bytes;
  return touched;
}

/// The bytes of a tile, one by one; those that begin a unit early may come twice.
std::vector<uint64_t> bytes_of_tile(const TouchedRows& rows, uint64_t tile) {
  std::vector<uint64_t> bytes;
  for (uint64_t unit = tile * kTileUnits; unit < (tile + 1) * kTileUnits; ++unit) {
    if (unit >= rows.grid.units) break;
    const uint64_t in_row = unit % rows.grid.row_units * rows.unit_bytes;
    for (uint64_t i = 0; i < rows.unit_bytes + rows.early_bytes; ++i) {
      if (in_row + i < rows.early_bytes) continue;
      const uint64_t byte = in_row + i - rows.early_bytes;
      if (byte < rows.row_bytes) {
        bytes.push_back(rows.begin + unit / rows.grid.row_units * rows.stride + byte);
      }
    }
  }
  return bytes;
}

struct Batch {
  std::vector<TouchedByCopy> copies;
  std::vector<TouchedRows> views;
};

/// Matrices whose columns are copied in parts from places of their own; views of matrices, of
/// parts, of sources, and of memory that nobody copies.
Batch random_batch(uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](uint64_t end) { return uint64_t{random() % end}; };
  Batch batch;
  uint64_t to = 1000;
  uint64_t from = 1'000'000'000;
  for (uint64_t matrix = 1 + below(6); matrix > 0; --matrix) {
    const uint32_t unit = 1U << below(4);
    const uint64_t parts = 1 + below(3);
    const uint64_t part_units = 1 + below(below(2) == 0 ? 40 : 9000);
    const uint64_t rows = 1 + below(1 + 30'000 / part_units);
    const uint64_t stride = parts * part_units * unit + below(3) * unit;
    for (uint64_t part = 0; part < parts; ++part) {
      const uint64_t from_stride = part_units * unit + below(2) * unit;
      batch.copies.push_back(
          {rows_at(from, rows, part_units, unit, from_stride),
           rows_at(to + part * part_units * unit, rows, part_units, unit, stride)});
      if (below(2) == 0) batch.views.push_back(batch.copies.back().from);
      from += rows * from_stride;
    }
    // Groups of eight bytes, which may begin up to seven earlier.
    const uint64_t row_bytes = parts * part_units * unit;
    auto whole = rows_at(to, rows, (row_bytes + 6) / 8 + 1, 8, stride);
    whole.row_bytes = row_bytes;
    whole.early_bytes = 7;
    batch.views.push_back(whole);
    to += rows * stride;
    if (below(2) == 0) {
      batch.views.push_back(rows_at(to, 1, 1 + below(9000), 1, 0));
      to += 9000;
    }
  }
  batch.views.push_back({});
  batch.copies.push_back({});
  std::shuffle(batch.copies.begin(), batch.copies.end(), random);
  std::shuffle(batch.views.begin(), batch.views.end(), random);
  return batch;
}

uint64_t tiles_of(const TouchedRows& rows) {
  return (rows.grid.units + kTileUnits - 1) / kTileUnits;
}

constexpr size_t kNobody = ~size_t{0};

/// Which copying step writes a byte, and what the order says of steps.
struct Written {
  std::vector<size_t> writers;        ///< By byte; position in the launch, or nobody.
  std::vector<size_t> copies_before;  ///< By position in the launch.
  std::vector<uint32_t> tiles_of_stretches;
  std::vector<size_t> last_of_stretches;  ///< Position of their last copy.
};

template <class Work>
void for_each_tile(const Batch& batch, const LaunchStep& step, const Work& work) {
  const bool is_copy = step.item < batch.copies.size();
  const auto& rows =
      is_copy ? batch.copies[step.item].to : batch.views[step.item - batch.copies.size()];
  for (uint64_t tile = step.first_tile; tile < step.first_tile + kStepTiles; ++tile) {
    if (tile < tiles_of(rows)) work(rows, tile);
  }
}

Written follow_copies(const Batch& batch, const LaunchOrder& order) {
  Written written;
  written.tiles_of_stretches.resize(order.stretch_tiles.size());
  written.last_of_stretches.resize(order.stretch_tiles.size());
  size_t copies = 0;
  size_t overwrites = 0;
  for (size_t at = 0; at < order.steps.size(); ++at) {
    const auto& step = order.steps[at];
    written.copies_before.push_back(copies);
    if (step.item >= batch.copies.size()) continue;
    ++copies;
    REQUIRE(step.first_stretch < order.stretch_tiles.size());
    written.last_of_stretches[step.first_stretch] = at;
    for_each_tile(batch, step, [&](const TouchedRows& rows, uint64_t tile) {
      ++written.tiles_of_stretches[step.first_stretch];
      for (const uint64_t byte : bytes_of_tile(rows, tile)) {
        if (byte >= written.writers.size()) written.writers.resize(byte + 1, kNobody);
        overwrites += written.writers[byte] == kNobody ? 0 : 1;
        written.writers[byte] = at;
      }
    });
  }
  REQUIRE(overwrites == 0);
  return written;
}

void check_view_step(const Batch& batch, const LaunchOrder& order, const Written& written,
                     const LaunchShape& shape, size_t at) {
  const auto& step = order.steps[at];
  size_t not_awaited = 0;
  for_each_tile(batch, step, [&](const TouchedRows& rows, uint64_t tile) {
    for (const uint64_t byte : bytes_of_tile(rows, tile)) {
      if (byte >= written.writers.size() || written.writers[byte] == kNobody) continue;
      const uint32_t stretch = order.steps[written.writers[byte]].first_stretch;
      if (stretch < step.first_stretch || stretch >= step.end_stretch) ++not_awaited;
    }
  });
  REQUIRE(not_awaited == 0);
  if (step.first_stretch == step.end_stretch) return;
  const size_t last = written.last_of_stretches[step.end_stretch - 1];
  REQUIRE(last < at);
  const size_t all_copies =
      written.copies_before.back() + (order.steps.back().item < batch.copies.size() ? 1 : 0);
  const size_t behind = written.copies_before[at] - written.copies_before[last] - 1;
  const size_t left = all_copies - written.copies_before[last] - 1;
  REQUIRE(behind == std::min<size_t>(shape.lag_steps, left));
}

void check_order(const Batch& batch, const LaunchShape& shape) {
  const auto order = order_launch(batch.copies, batch.views, shape);
  std::set<std::pair<uint32_t, uint64_t>> tiles;
  for (const auto& step : order.steps) {
    for_each_tile(batch, step, [&](const TouchedRows& /*rows*/, uint64_t tile) {
      REQUIRE(tiles.emplace(step.item, tile).second);
    });
  }
  uint64_t all_tiles = 0;
  for (const auto& copy : batch.copies) all_tiles += tiles_of(copy.to);
  for (const auto& view : batch.views) all_tiles += tiles_of(view);
  CHECK(tiles.size() == all_tiles);
  const auto written = follow_copies(batch, order);
  CHECK(written.tiles_of_stretches == order.stretch_tiles);
  for (size_t at = 0; at < order.steps.size(); ++at) {
    if (order.steps[at].item >= batch.copies.size()) {
      check_view_step(batch, order, written, shape, at);
    }
  }
}

constexpr uint64_t kStepBytes = uint64_t{16} * kTileUnits * kStepTiles;

}  // namespace

TEST_CASE("every tile comes once, and views behind all that they read, by the lag") {
  for (uint32_t seed = 0; seed < 25; ++seed) {
    CAPTURE(seed);
    const auto batch = random_batch(seed);
    for (const LaunchShape shape : {LaunchShape{1, 0}, {1, 3}, {4, 2}, {1000, 5}}) {
      CAPTURE(shape.stretch_steps);
      CAPTURE(shape.lag_steps);
      check_order(batch, shape);
    }
  }
}

TEST_CASE("a view of what is copied in order waits for no more than its stretches") {
  constexpr uint64_t kSteps = 40;
  const Batch batch{{{rows_at(1 << 30, 1, kSteps * kStepBytes / 16, 16, 0),
                      rows_at(0, 1, kSteps * kStepBytes / 16, 16, 0)}},
                    {rows_at(0, 1, kSteps * kStepBytes / 16, 16, 0)}};
  const auto order = order_launch(batch.copies, batch.views, {4, 6});
  CHECK(order.stretch_tiles == std::vector<uint32_t>(kSteps / 4, 4 * kStepTiles));
  for (const auto& step : order.steps) {
    if (step.item == 0) continue;
    CHECK(step.first_stretch == step.first_tile / kStepTiles / 4);
    CHECK(step.end_stretch == step.first_stretch + 1);
  }
}

TEST_CASE("a view of a source stands right behind the copy that reads it, and waits for nothing") {
  constexpr uint64_t kUnits = 20 * kStepBytes / 16;
  // Two tensors change places.
  const Batch batch{
      {{rows_at(1 << 30, 1, kUnits, 16, 0), rows_at(kUnits * 16, 1, kUnits, 16, 0)},
       {rows_at((1 << 30) + kUnits * 16, 1, kUnits, 16, 0), rows_at(0, 1, kUnits, 16, 0)}},
      {rows_at(1 << 30, 1, 2 * kUnits, 16, 0)}};
  const auto order = order_launch(batch.copies, batch.views, {4, 6});
  REQUIRE(order.steps.size() == 80);
  for (size_t at = 0; at < order.steps.size(); at += 2) {
    const auto& copy = order.steps[at];
    const auto& view = order.steps[at + 1];
    REQUIRE(copy.item < 2);
    REQUIRE(view.item == 2);
    CHECK(view.first_tile == copy.first_tile + copy.item * 20 * kStepTiles);
    CHECK(view.first_stretch == view.end_stretch);
  }
}

TEST_CASE("orders of millions of tiles and items are made in well under a second") {
  const auto seconds = [](const Batch& batch) {
    const auto start = std::chrono::steady_clock::now();
    const auto order = order_launch(batch.copies, batch.views, {16, 64});
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    CHECK(order.steps.size() > batch.copies.size());
    return taken.count();
  };
  const auto batch_of = [](uint64_t items, uint64_t bytes) {
    Batch batch;
    for (uint64_t i = 0; i < items; ++i) {
      batch.copies.push_back({rows_at((1ULL << 40) + i * bytes, 1, bytes / 16, 16, 0),
                              rows_at((items - i) * bytes, 1, bytes / 16, 16, 0)});
      batch.views.push_back(batch.copies.back().to);
      batch.views.push_back(batch.copies.back().from);
    }
    return batch;
  };
  const double tensors = seconds(batch_of(9216, 3 << 20));
  const double small_items = seconds(batch_of(1'000'000, 4096));
  MESSAGE("9,216 tensors of 3 MiB: ", tensors, " s; 1,000,000 items of 4 KiB: ", small_items, " s");
  // The machine may be busy with other work.
  CHECK(tensors < 5);
  CHECK(small_items < 20);
}
