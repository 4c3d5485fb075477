#include "model/digest.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/error.hpp"
#include "base/widest_vectors.hpp"

namespace awex {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are read as they lie in files");

template <class Bits>
uint64_t load(const std::byte* element) {
  Bits bits = 0;
  std::memcpy(&bits, element, sizeof(bits));
  return bits;
}

/// The sum over `groups` whole groups, the first of which is `group`. What the lanes of all groups
/// have in common is multiplied once, at the end.
template <class Bits>
uint64_t digest_groups(uint64_t key, uint64_t group, uint64_t groups, const std::byte* at) {
  return with_widest_vectors([=]() __attribute__((always_inline)) {
    std::array<uint64_t, kDigestLanes> lanes{};
    for (uint64_t i = 0; i < groups; ++i) {
      const uint64_t of_group = group_key(key, group + i);
      const std::byte* const first = at + i * kDigestLanes * sizeof(Bits);
      for (uint64_t lane = 0; lane < kDigestLanes; ++lane) {
        lanes[lane] += of_group * (load<Bits>(first + lane * sizeof(Bits)) + 1);
      }
    }
    uint64_t sum = 0;
    for (uint64_t lane = 0; lane < kDigestLanes; ++lane) sum += kLaneKeys[lane] * lanes[lane];
    return sum;
  });
}

template <class Bits>
uint64_t digest_run(uint64_t key, uint64_t first, std::span<const std::byte> bytes) {
  const std::byte* at = bytes.data();
  const uint64_t end = first + bytes.size() / sizeof(Bits);
  uint64_t sum = 0;
  uint64_t index = first;
  const auto one_by_one = [&](uint64_t until) {
    for (; index < until; ++index, at += sizeof(Bits)) {
      sum += digest_term(key, index, load<Bits>(at));
    }
  };
  one_by_one(std::min(end, (first + kDigestLanes - 1) / kDigestLanes * kDigestLanes));
  const uint64_t groups = (end - index) / kDigestLanes;
  sum += digest_groups<Bits>(key, index / kDigestLanes, groups, at);
  index += groups * kDigestLanes;
  at += groups * kDigestLanes * sizeof(Bits);
  one_by_one(end);
  return sum;
}

}  // namespace

uint64_t tensor_key(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return mix64(hash);
}

uint64_t digest_elements(uint64_t key, uint64_t element_size, uint64_t first,
                         std::span<const std::byte> bytes) {
  if (element_size == 0 || bytes.size() % element_size != 0) {
    throw runtime_error(fmt::format("{} bytes are no whole number of elements of {} bytes",
                                    bytes.size(), element_size));
  }
  switch (element_size) {
    case 1:
      return digest_run<uint8_t>(key, first, bytes);
    case 2:
      return digest_run<uint16_t>(key, first, bytes);
    case 4:
      return digest_run<uint32_t>(key, first, bytes);
    default:
      throw runtime_error(fmt::format("no digest for elements of {} bytes", element_size));
  }
}

}  // namespace awex
