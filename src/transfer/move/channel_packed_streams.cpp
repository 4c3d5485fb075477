#include "transfer/move/channel_packed_streams.hpp"

#include <atomic>
#include <set>

#include "transfer/move/strided_copies.hpp"

namespace awex {
namespace {

template <class Cut>
std::vector<PackedStream> cut_all(const std::vector<PackedStream>& streams, const Cut& cut) {
  std::vector<PackedStream> all;
  for (const auto& stream : streams) {
    auto& parts = all.emplace_back(PackedStream{stream.peer, {}}).copies;
    for (const auto& [copy, begin] : stream.copies) {
      uint64_t at = begin;
      for (const auto& part : cut(copy)) {
        parts.push_back({part, at});
        at += part.bytes();
      }
    }
  }
  return all;
}

}  // namespace

std::vector<PackedStream> cut_to_send(const std::vector<PackedStream>& streams,
                                      const PlacedMemory& trainer) {
  return cut_all(streams, [&](const MergedCopy& copy) { return cut_at_source(copy, trainer); });
}

std::vector<PackedStream> cut_to_receive(const std::vector<PackedStream>& streams,
                                         const PlacedMemory& own) {
  return cut_all(streams, [&](const MergedCopy& copy) { return cut_at_target(copy, own); });
}

std::vector<uint32_t> all_first_copies(const std::vector<PackedStream>& streams) {
  std::vector<uint32_t> all;
  for (const auto& stream : streams) {
    const auto first = first_copies(stream);
    all.insert(all.end(), first.begin(), first.end());
  }
  return all;
}

std::vector<uint64_t> bytes_before_copies(const std::vector<PackedStream>& streams) {
  std::vector<uint64_t> all;
  uint64_t before = 0;
  for (const auto& stream : streams) {
    for (const auto& copy : stream.copies) {
      all.push_back(before);
      before += copy.copy.bytes();
    }
  }
  return all;
}

std::vector<uint32_t> late_peers_in(std::span<uint32_t> waits) {
  std::set<uint32_t> peers;
  for (uint32_t& wait : waits) {
    const uint32_t noted = std::atomic_ref(wait).load(std::memory_order_relaxed);
    if (noted > 0) peers.insert(noted - 1);
  }
  return {peers.begin(), peers.end()};
}

}  // namespace awex
