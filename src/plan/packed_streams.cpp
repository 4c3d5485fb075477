#include "plan/packed_streams.hpp"

#include "base/checked.hpp"
#include "plan/channels.hpp"

namespace awex {
namespace {

/// Larger copies are split, so that 32 bits count their bytes.
constexpr uint64_t kMostCopyBytes = 1ULL << 30;

PackedStream stream_of(uint32_t peer, const ExchangedCopies::ByPeer& copies) {
  PackedStream stream{peer, {}};
  const auto found = copies.find(peer);
  if (found == copies.end()) return stream;
  for (const auto& copy : found->second) {
    for (const auto& part : split(copy, kMostCopyBytes)) {
      stream.copies.push_back({part, round_up(stream.bytes(), kPackedStreamAlignment)});
    }
  }
  return stream;
}

}  // namespace

std::vector<PackedStream> streams_to_send(const ExchangedCopies& copies) {
  std::vector<PackedStream> streams;
  for (uint32_t distance = 1; distance < copies.ranks; ++distance) {
    streams.push_back(stream_of((copies.me + distance) % copies.ranks, copies.sends));
  }
  return streams;
}

std::vector<PackedStream> streams_to_receive(const ExchangedCopies& copies) {
  std::vector<PackedStream> streams;
  for (uint32_t distance = 1; distance < copies.ranks; ++distance) {
    const uint32_t peer = (copies.me + copies.ranks - distance) % copies.ranks;
    streams.push_back(stream_of(peer, copies.receives));
  }
  return streams;
}

std::vector<uint32_t> first_copies(const PackedStream& stream) {
  std::vector<uint32_t> first;
  uint32_t copy = 0;
  for (uint64_t begin = 0; begin < stream.bytes(); begin += kPacketBytes) {
    while (stream.copies[copy].end() <= begin) ++copy;
    first.push_back(copy);
  }
  return first;
}

}  // namespace awex
