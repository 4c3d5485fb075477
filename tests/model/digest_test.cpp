#include "model/digest.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cstring>
#include <random>
#include <vector>

using namespace awex;

namespace {

std::vector<std::byte> random_bytes(size_t count) {
  std::mt19937_64 random(count);
  std::vector<std::byte> bytes(count);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

/// The definition, one element after the other.
uint64_t by_definition(uint64_t key, uint64_t element_size, uint64_t first,
                       std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes.size() / element_size; ++i) {
    uint64_t bits = 0;
    std::memcpy(&bits, bytes.data() + i * element_size, element_size);
    sum += digest_term(key, first + i, bits);
  }
  return sum;
}

}  // namespace

TEST_CASE("the digest has the values of docs/digest.md") {
  CHECK(tensor_key("model.norm.weight") == 0x4e4e52191e974f2eU);
  const std::vector<uint16_t> elements{0, 1, 2, 3, 0xffff, 0x3f80, 6, 7, 8, 9};
  CHECK(digest_elements(tensor_key("model.norm.weight"), 2, 0,
                        std::as_bytes(std::span(elements))) == 0x6db16a85dedc21edU);
}

TEST_CASE("the fast sum is the sum of the terms, at any start, length and alignment") {
  constexpr uint64_t kFarAway = (uint64_t{1} << 40) + 3;
  const auto bytes = random_bytes(400);
  for (const uint64_t element_size : {1, 2, 4}) {
    for (uint64_t shift = 0; shift < 3; ++shift) {
      for (uint64_t count = 0; count < 40; ++count) {
        for (uint64_t first = 0; first < 17; ++first) {
          const auto part = std::span(bytes).subspan(shift, count * element_size);
          for (const uint64_t start : {first, first + kFarAway}) {
            REQUIRE(digest_elements(99, element_size, start, part) ==
                    by_definition(99, element_size, start, part));
          }
        }
      }
    }
  }
}

TEST_CASE("the parts of a tensor add up to the whole, wherever it is cut") {
  const auto bytes = random_bytes(128);
  const auto whole = digest_elements(5, 2, 0, bytes);
  for (size_t cut = 0; cut <= 64; ++cut) {
    const std::span all(bytes);
    CHECK(digest_elements(5, 2, 0, all.first(2 * cut)) +
              digest_elements(5, 2, cut, all.subspan(2 * cut)) ==
          whole);
  }
}

TEST_CASE("every changed, moved or swapped element changes the digest") {
  auto bytes = random_bytes(64);
  const auto original = digest_elements(5, 1, 0, bytes);
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] ^= std::byte{1} << bit;
      CHECK(digest_elements(5, 1, 0, bytes) != original);
      bytes[i] ^= std::byte{1} << bit;
    }
    for (size_t j = 0; j < i; ++j) {
      if (bytes[i] == bytes[j]) continue;
      std::swap(bytes[i], bytes[j]);
      CHECK(digest_elements(5, 1, 0, bytes) != original);
      std::swap(bytes[i], bytes[j]);
    }
  }
  CHECK(digest_elements(5, 1, 1, bytes) != original);
  CHECK(digest_elements(6, 1, 0, bytes) != original);
}

TEST_CASE("swapping two elements of a group can never cancel") {
  // The change is group key * (lane key difference) * (bits difference). The first is odd and the
  // last has at most 31 trailing zero bits, so the product is not 0 mod 2^64 if this holds.
  for (uint64_t a = 0; a < kDigestLanes; ++a) {
    CHECK(kLaneKeys[a] % 2 == 1);
    for (uint64_t b = 0; b < a; ++b) {
      CHECK(std::countr_zero(kLaneKeys[a] - kLaneKeys[b]) + 31 < 64);
    }
  }
}

TEST_CASE("zeros count: tensors of zeros differ by their length and their name") {
  const std::vector<std::byte> zeros(32);
  const std::span all(zeros);
  CHECK(digest_elements(tensor_key("a"), 2, 0, all) !=
        digest_elements(tensor_key("a"), 2, 0, all.first(30)));
  CHECK(digest_elements(tensor_key("a"), 2, 0, all) != digest_elements(tensor_key("b"), 2, 0, all));
}
