#include "transfer/move/channel_streams.hpp"

#include <atomic>
#include <set>

namespace awex {

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
