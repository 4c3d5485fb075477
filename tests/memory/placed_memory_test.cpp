#include "memory/placed_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/error.hpp"

namespace awex {
namespace {

using Segments = std::vector<MemorySegment>;

/// Bytes that segments lie in; aligned as memory of devices is.
struct Pool {
  alignas(256) std::byte bytes[4096] = {};
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

template <class Work>
std::string refusal(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("memory in one piece has an address for each of its bytes, and for no other") {
  Pool pool;
  const PlacedMemory memory(pool.bytes, 100);
  CHECK(memory.at(0, 100) == pool.bytes);
  CHECK(memory.at(99, 1) == pool.bytes + 99);
  CHECK(memory.together_from(40) == 60);
  CHECK(contains(refusal([&] { (void)memory.at(100, 1); }), "byte 100 of memory is in none"));
  CHECK(contains(refusal([&] { (void)memory.at(90, 11); }), "must lie together"));
  CHECK(contains(refusal([&] { (void)PlacedMemory().at(0, 1); }), "none of its 0 segments"));
}

TEST_CASE("segments are found in whatever order they are given") {
  Pool pool;
  const PlacedMemory memory(
      "weights", {{64, pool.bytes, 64}, {0, pool.bytes + 1024, 64}, {256, pool.bytes + 512, 8}});
  CHECK(memory.at(0, 64) == pool.bytes + 1024);
  CHECK(memory.at(64, 64) == pool.bytes);
  CHECK(memory.at(258, 2) == pool.bytes + 514);
  CHECK(contains(refusal([&] { (void)memory.at(60, 8); }), "the 8 B of weights from byte 60 on"));
  CHECK(contains(refusal([&] { (void)memory.at(128, 1); }), "byte 128 of weights"));
  CHECK(contains(refusal([&] { (void)memory.at(264, 1); }), "byte 264 of weights"));
}

TEST_CASE("segments that overlap or lie askew are refused by name") {
  Pool pool;
  CHECK(contains(refusal([&] {
                   (void)PlacedMemory("weights", {{0, pool.bytes, 64}, {56, pool.bytes + 56, 8}});
                 }),
                 "two segments of weights both have its byte 56"));
  CHECK(contains(refusal([&] {
                   (void)PlacedMemory("weights", {{0, pool.bytes + 2, 64}});
                 }),
                 "not aligned to 8 bytes"));
  CHECK(refusal([&] { (void)PlacedMemory("weights", {{2, pool.bytes + 10, 64}}); }).empty());
}

TEST_CASE("rows are cut where segments end, and a row in whose midst one ends as well") {
  Pool pool;
  const auto cut = [&](const PlacedMemory& memory, uint64_t rows, uint64_t cols, uint64_t stride) {
    const PlacedRows side{&memory, 0, stride, 2};
    return cut_rows(rows, cols, {&side, 1});
  };
  using Blocks = std::vector<RowBlock>;
  // 6 rows of 4 elements of 2 bytes, 8 bytes apart.
  CHECK(cut(PlacedMemory(pool.bytes, 48), 6, 4, 8) == Blocks{{0, 6, 0, 4}});
  CHECK(cut({"m", {{0, pool.bytes, 16}, {16, pool.bytes + 512, 32}}}, 6, 4, 8) ==
        Blocks{{0, 2, 0, 4}, {2, 4, 0, 4}});
  CHECK(cut({"m", {{0, pool.bytes, 20}, {20, pool.bytes + 516, 28}}}, 6, 4, 8) ==
        Blocks{{0, 2, 0, 4}, {2, 1, 0, 2}, {2, 1, 2, 2}, {3, 3, 0, 4}});
  // Between rows 8 bytes long and 16 apart nothing need be.
  CHECK(cut({"m", {{0, pool.bytes, 24}, {32, pool.bytes + 512, 8}}}, 3, 4, 16) ==
        Blocks{{0, 2, 0, 4}, {2, 1, 0, 4}});
  CHECK(contains(refusal([&] {
                   (void)cut({"m", {{0, pool.bytes, 17}, {17, pool.bytes + 513, 31}}}, 6, 4, 8);
                 }),
                 "a segment of m ends at byte 17, within an element of 2 bytes"));
  CHECK(contains(refusal([&] { (void)cut(PlacedMemory(pool.bytes, 47), 6, 4, 8); }),
                 "within an element"));
  CHECK(contains(refusal([&] { (void)cut(PlacedMemory(pool.bytes, 40), 6, 4, 8); }),
                 "byte 40 of memory is in none"));
}

TEST_CASE("blocks of two sides cover all rows once, and lie in one segment of both") {
  std::mt19937_64 dice(7);
  const auto below = [&](uint64_t bound) { return dice() % bound; };
  for (int round = 0; round < 300; ++round) {
    const uint64_t rows = 1 + below(9);
    const uint64_t cols = 1 + below(9);
    const uint64_t sizes[] = {2, 4};
    std::vector<PlacedMemory> memories;
    std::vector<PlacedRows> sides;
    for (const uint64_t element : sizes) {
      const uint64_t stride = (cols + below(3)) * element;
      const uint64_t first = below(5) * element;
      const uint64_t end = first + (rows - 1) * stride + cols * element;
      std::vector<MemorySegment> segments;
      for (uint64_t at = 0; at < end;) {
        const uint64_t bytes = std::min(end - at, (1 + below(20)) * element);
        // Any address will do, if it is aligned alike and its own.
        segments.push_back(
            {at, reinterpret_cast<std::byte*>(1000000 * segments.size() + at), bytes});
        at += bytes;
      }
      std::shuffle(segments.begin(), segments.end(), dice);
      memories.emplace_back("m", segments);
      sides.push_back({nullptr, first, stride, element});
    }
    for (size_t i = 0; i < sides.size(); ++i) sides[i].memory = &memories[i];
    std::set<std::pair<uint64_t, uint64_t>> seen;
    for (const auto& block : cut_rows(rows, cols, sides)) {
      for (uint64_t row = block.row; row < block.row + block.rows; ++row) {
        for (uint64_t col = block.col; col < block.col + block.cols; ++col) {
          CHECK(seen.emplace(row, col).second);
        }
      }
      for (const auto& side : sides) {
        const uint64_t first =
            side.offset_bytes + block.row * side.stride_bytes + block.col * side.element_bytes;
        CHECK(address_of(block, side) == side.memory->at(first, 1));
      }
    }
    CHECK(seen.size() == rows * cols);
  }
}

}  // namespace awex
