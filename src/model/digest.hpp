#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace awex {

/// The digest of docs/digest.md. For a tensor with key K (from its name), element i of the
/// row-major canonical tensor with bits b (zero-extended to 64 bits):
///
///   digest = sum over i of  group_key(K, i / 8) * kLaneKeys[i % 8] * (b + 1)    mod 2^64
///
/// All factors but (b + 1) are odd, so changing one element always changes the sum; the sum
/// commutes, so any split of a tensor over ranks adds up to the same number.
inline constexpr uint64_t kDigestLanes = 8;
inline constexpr uint64_t kLaneKeys[kDigestLanes] = {
    0x9e3779b97f4a7c15U, 0xbf58476d1ce4e5b9U, 0x94d049bb133111ebU, 0xd6e8feb86659fd93U,
    0xa0761d6478bd642fU, 0xe7037ed1a0b428dbU, 0x8ebc6af09c88c6e3U, 0x589965cc75374cc3U};

/// SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64 bits.
[[nodiscard]] constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

/// The odd key of the eight elements [8 * group, 8 * group + 8).
[[nodiscard]] constexpr uint64_t group_key(uint64_t tensor_key, uint64_t group) {
  return mix64(tensor_key + group * 0x9e3779b97f4a7c15U) | 1;
}

/// What element `index` with bits `bits` adds to its tensor's digest.
[[nodiscard]] constexpr uint64_t digest_term(uint64_t tensor_key, uint64_t index, uint64_t bits) {
  return group_key(tensor_key, index / kDigestLanes) * kLaneKeys[index % kDigestLanes] * (bits + 1);
}

/// A tensor's key: mix64 of the FNV-1a 64-bit hash of its name's UTF-8 bytes.
[[nodiscard]] uint64_t tensor_key(std::string_view name);

/// The sum of digest_term over consecutive elements that begin at canonical index `first`.
/// `element_size` is 1, 2 or 4; `bytes` holds whole little-endian elements at any alignment.
[[nodiscard]] uint64_t digest_elements(uint64_t key, uint64_t element_size, uint64_t first,
                                       std::span<const std::byte> bytes);

/// A model's digest: the sum over its tensors of mix64(tensor digest ^ tensor key), mod 2^64.
[[nodiscard]] constexpr uint64_t model_digest_term(uint64_t key, uint64_t tensor_digest) {
  return mix64(tensor_digest ^ key);
}

}  // namespace awex
