#include "engine/inference_stand_in.hpp"

namespace awex {

InferenceStandIn::InferenceStandIn(const InferenceParts& parts)
    : layout_(parts.common.layout),
      queue_(parts.common.queue),
      gaps_(layout_.gaps(parts.common.catalogue)),
      weights_(parts.common.device, "inference weights", Tag::kWeights, layout_.bytes,
               &parts.common.ledger) {
  if (parts.kv_cache_bytes > 0) {
    kv_cache_.emplace(parts.common.device, "inference KV cache", Tag::kKvCache,
                      parts.kv_cache_bytes, &parts.common.ledger);
  }
}

Region* InferenceStandIn::region(Tag tag) {
  switch (tag) {
    case Tag::kWeights:
      return &weights_;
    case Tag::kKvCache:
      return kv_cache_ ? &*kv_cache_ : nullptr;
    case Tag::kOptimizer:
      return nullptr;
  }
  return nullptr;
}

std::vector<Parameter> InferenceStandIn::tensors(Tag tag) const {
  if (tag == Tag::kWeights) return layout_.parameters;
  return {};
}

void InferenceStandIn::after_change(Tag tag, const Change& change, const Deadline& deadline,
                                    WaitMonitor& monitor) {
  if (tag != Tag::kWeights || change.kind != Change::Kind::kTaken) return;
  const PlacedMemory weights = placed(Tag::kWeights);
  for (const auto& gap : gaps_) {
    queue_.fill_zero(weights.at(gap.offset_bytes, gap.bytes), gap.bytes);
  }
  queue_.finish("clearing the padding of the weights", deadline, monitor);
}

}  // namespace awex
