#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "layout/layout.hpp"
#include "memory/region.hpp"
#include "model/catalogue.hpp"

namespace awex {

/// The built-in inference engine of one rank: holds its fused weights and a KV cache.
class InferenceStandIn {
 public:
  /// Reserves addresses; takes no memory. `kv_cache_bytes` 0 means none. `device` and `ledger`
  /// must outlive it.
  InferenceStandIn(const Catalogue& catalogue, RankLayout layout, uint64_t kv_cache_bytes,
                   Device& device, MemoryLedger& ledger);

  [[nodiscard]] const RankLayout& layout() const { return layout_; }
  [[nodiscard]] Region& weights() { return weights_; }
  /// Null without a KV cache.
  [[nodiscard]] Region* kv_cache() { return kv_cache_ ? &*kv_cache_ : nullptr; }

  /// Takes the weights' memory and clears what no tensor will fill (vocabulary padding), as engines
  /// do when they load.
  void take_weights(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor);

 private:
  RankLayout layout_;
  std::vector<Gap> gaps_;
  Region weights_;
  std::optional<Region> kv_cache_;
};

}  // namespace awex
