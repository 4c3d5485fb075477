#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/thread_pool.hpp"
#include "engine/adamw.hpp"
#include "layout/layout.hpp"
#include "memory/region.hpp"
#include "model/weights.hpp"
#include "transfer/prove/region_proof.hpp"

namespace awex {

/// The built-in trainer of one rank: holds its shards of a model and, with an optimizer, fp32
/// master weights and two moments for every weight, and takes real AdamW steps on generated
/// gradients. Its next weights depend on every byte of its state.
class TrainerStandIn {
 public:
  /// Reserves addresses; takes no memory. The weights region has `weights_bytes`, of which what
  /// lies behind the layout's own is left to others (the scales of layout/trainer_scales.hpp).
  /// `catalogue`, `device`, `ledger`, `kernels` and `threads`, which load and, on the host backend,
  /// train, must outlive it. Throws a request error when the model's dtype cannot be trained.
  TrainerStandIn(const Catalogue& catalogue, RankLayout layout, uint64_t weights_bytes,
                 bool with_optimizer, Device& device, MemoryLedger& ledger, Kernels& kernels,
                 ThreadPool& threads);

  [[nodiscard]] const RankLayout& layout() const { return layout_; }
  [[nodiscard]] Region& weights() { return weights_; }
  /// Null without an optimizer.
  [[nodiscard]] Region* optimizer() { return optimizer_ ? &*optimizer_ : nullptr; }

  /// Takes all memory, loads the weights and initialises the optimizer. Tells the monitor of its
  /// progress, which renews the deadline. After an error work on all of it may go on: it must then
  /// stay until the process ends.
  void load(const WeightSource& source, Device& device, CopyQueue& queue, const Deadline& deadline,
            WaitMonitor& monitor);

  /// One AdamW step on all weights; everything must be resident. Does nothing without an optimizer.
  void train(const Deadline& deadline, WaitMonitor& monitor);

  /// The weights region by engine parameter, the optimizer's by state and parameter.
  [[nodiscard]] std::vector<Segment> weight_segments() const;
  [[nodiscard]] std::vector<Segment> optimizer_segments() const;

  /// Bytes of optimizer state for a rank's weights: three fp32 values an element.
  [[nodiscard]] static uint64_t optimizer_bytes(const RankLayout& layout);

 private:
  void clear_optimizer(CopyQueue& queue, Seconds silence, WaitMonitor& monitor);
  void initialise_optimizer(const Device& device, Seconds silence, WaitMonitor& monitor);
  [[nodiscard]] std::vector<AdamWView> optimizer_views(DType dtype) const;

  const Catalogue& catalogue_;
  RankLayout layout_;
  Kernels& kernels_;
  ThreadPool& threads_;
  Region weights_;
  std::optional<Region> optimizer_;
  std::vector<std::unique_ptr<AdamW>> adamw_;  ///< One for each dtype of the weights.
  std::unique_ptr<HostBlock> window_;          ///< While weights are loaded.
  uint64_t steps_ = 0;
};

}  // namespace awex
