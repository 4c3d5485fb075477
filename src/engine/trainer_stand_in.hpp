#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/adamw.hpp"
#include "engine/engine.hpp"
#include "engine/optimizer_state.hpp"

namespace awex {

/// The built-in trainer of one rank: holds its shards of a model and, with an optimizer, fp32
/// master weights and two moments for every weight, and takes real AdamW steps on generated
/// gradients. Its next weights depend on every byte of its state.
class TrainerStandIn final : public TrainerEngine {
 public:
  /// Reserves addresses; takes no memory. Throws a request error when the model's dtype cannot be
  /// trained.
  explicit TrainerStandIn(const TrainerParts& parts);

  [[nodiscard]] std::string name() const override { return "built in"; }
  [[nodiscard]] Region* region(Tag tag) override;
  [[nodiscard]] std::vector<Parameter> tensors(Tag tag) const override;

  /// Takes all memory, loads the weights and initialises the optimizer. Tells the monitor of its
  /// progress, which renews the deadline. After an error work on all of it may go on: it must then
  /// stay until the process ends.
  void load(const Deadline& deadline, WaitMonitor& monitor) override;
  void before_release(Tag /*tag*/, const Deadline& /*deadline*/,
                      WaitMonitor& /*monitor*/) override {}
  void after_change(Tag /*tag*/, const Change& /*change*/, const Deadline& /*deadline*/,
                    WaitMonitor& /*monitor*/) override {}
  /// One AdamW step. Does nothing without an optimizer.
  void train(const Deadline& deadline, WaitMonitor& monitor) override;
  [[nodiscard]] uint64_t steps() const override { return steps_; }

 private:
  void clear_optimizer(Seconds silence, WaitMonitor& monitor);
  void initialise_optimizer(Seconds silence, WaitMonitor& monitor);
  [[nodiscard]] std::vector<AdamWView> optimizer_views(DType dtype);

  TrainerParts parts_;
  OptimizerState state_;
  Region weights_;
  std::optional<Region> optimizer_;
  std::vector<std::unique_ptr<AdamW>> adamw_;  ///< One for each dtype of the weights.
  std::unique_ptr<HostBlock> window_;          ///< While weights are loaded.
  uint64_t steps_ = 0;
};

}  // namespace awex
