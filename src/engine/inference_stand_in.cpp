#include "engine/inference_stand_in.hpp"

#include <utility>

namespace awex {

InferenceStandIn::InferenceStandIn(const Catalogue& catalogue, RankLayout layout,
                                   uint64_t kv_cache_bytes, Device& device, MemoryLedger& ledger)
    : layout_(std::move(layout)),
      gaps_(layout_.gaps(catalogue)),
      weights_(device, "inference weights", Tag::kWeights, layout_.bytes, &ledger) {
  if (kv_cache_bytes > 0) {
    kv_cache_.emplace(device, "inference KV cache", Tag::kKvCache, kv_cache_bytes, &ledger);
  }
}

void InferenceStandIn::take_weights(CopyQueue& queue, const Deadline& deadline,
                                    WaitMonitor& monitor) {
  if (!weights_.take(deadline, monitor).changed) return;
  for (const auto& gap : gaps_) queue.fill_zero(weights_.data() + gap.offset_bytes, gap.bytes);
  queue.finish("clearing the padding of the weights", deadline, monitor);
}

}  // namespace awex
