#pragma once

#include <optional>
#include <vector>

#include "engine/engine.hpp"

namespace awex {

/// The built-in inference engine of one rank: holds its fused weights and a KV cache.
class InferenceStandIn final : public Engine {
 public:
  /// Reserves addresses; takes no memory.
  explicit InferenceStandIn(const InferenceParts& parts);

  [[nodiscard]] std::string name() const override { return "built in"; }
  [[nodiscard]] Region* region(Tag tag) override;
  [[nodiscard]] std::vector<Parameter> tensors(Tag tag) const override;

  /// Nothing: its weights come from the trainer.
  void load(const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) override {}
  void before_release(Tag /*tag*/, const Deadline& /*deadline*/,
                      WaitMonitor& /*monitor*/) override {}
  /// When its weights' memory is there, clears what no tensor will fill (vocabulary padding), as
  /// engines do when they load.
  void after_change(Tag tag, const Change& change, const Deadline& deadline,
                    WaitMonitor& monitor) override;

 private:
  const RankLayout& layout_;
  CopyQueue& queue_;
  std::vector<Gap> gaps_;
  Region weights_;
  std::optional<Region> kv_cache_;
};

}  // namespace awex
