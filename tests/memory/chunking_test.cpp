#include "memory/chunking.hpp"

#include <doctest/doctest.h>

using namespace awex;

namespace {

constexpr uint64_t kMiB = 1ULL << 20;
constexpr uint64_t kGiB = 1ULL << 30;
constexpr uint64_t kTiB = 1ULL << 40;
constexpr uint64_t kChunk = 64 * kMiB;

}  // namespace

TEST_CASE("chunks are even, an eighth of the range, and no more than a handle record can name") {
  CHECK(chunk_bytes_for(1) == 2 * kMiB);
  CHECK(chunk_bytes_for(kChunk) == kChunk);
  CHECK(chunk_bytes_for(2 * kChunk) == kChunk);
  CHECK(chunk_bytes_for(kChunk + 1) == 34 * kMiB);
  CHECK(chunk_bytes_for(8 * kChunk) == kChunk);
  CHECK(chunk_bytes_for(8 * kChunk + 1) == kChunk + 2 * kMiB);
  CHECK(chunk_bytes_for(8 * kGiB) == kGiB);
  CHECK(chunk_bytes_for(16 * kGiB) == kGiB);
  CHECK(chunk_bytes_for(256 * kGiB) == kGiB);
  CHECK(chunk_bytes_for(256 * kGiB + 1) == kGiB + 2 * kMiB);
  for (const uint64_t bytes : {3 * kMiB, kChunk + 1, 100 * kChunk + 7, kTiB, kTiB + 12345}) {
    CAPTURE(bytes);
    const uint64_t chunk = chunk_bytes_for(bytes);
    const uint64_t chunks = (bytes + chunk - 1) / chunk;
    CHECK(chunk % (2 * kMiB) == 0);
    CHECK(chunks <= kMaxChunks);
    // What rounding adds is at most one step a chunk.
    CHECK(chunks * chunk - bytes <= chunks * 2 * kMiB);
  }
}

TEST_CASE(
    "the last chunk holds what it uses, in whole steps, and all chunks hold what the range does") {
  const Chunking chunking{"weights", 3 * kMiB + 5, 2 * kMiB};
  REQUIRE(chunking.count() == 2);
  CHECK(chunking.used_bytes(0) == 2 * kMiB);
  CHECK(chunking.used_bytes(1) == kMiB + 5);
  CHECK(chunking.held_bytes(1, 1) == 2 * kMiB);
  CHECK(chunking.held_bytes(0, 2) == held_bytes_for(chunking.bytes));
  CHECK(held_bytes_for(0) == 0);
  for (const uint64_t bytes : {kChunk + 1, 100 * kChunk + 7, kGiB + 3 * kMiB, kTiB + 12345}) {
    CAPTURE(bytes);
    const Chunking chunks{"weights", bytes, chunk_bytes_for(bytes)};
    const uint64_t last = chunks.count() - 1;
    CHECK(chunks.begin(last) + chunks.used_bytes(last) == bytes);
    CHECK(chunks.held_bytes(0, last) == last * chunks.chunk_bytes);
    CHECK(chunks.held_bytes(0, last) + chunks.held_bytes(last, 1) == held_bytes_for(bytes));
    CHECK(held_bytes_for(bytes) - bytes < kPhysicalStepBytes);
  }
}

TEST_CASE("chunks are told by number, range and bytes, also those that there are not") {
  const Chunking chunking{"kv_cache", 8 * kGiB, kGiB};
  CHECK(chunking.describe(0, 1) == "chunk 1 of 8 of \"kv_cache\" (1.07 GB)");
  CHECK(chunking.describe(6, 2) == "chunks 7 to 8 of 8 of \"kv_cache\" (2.15 GB)");
  CHECK(chunking.describe(8, 1) == "chunk 9 of 8 of \"kv_cache\" (0 B)");
}
