#include "engine/trainer_stand_in.hpp"

#include <algorithm>
#include <array>
#include <set>

#include "base/work_progress.hpp"
#include "engine/region_loader.hpp"

namespace awex {
namespace {

constexpr const char* kInitialising = "initialising the optimizer after loading";

/// Tells of work on the optimizer's state, which comes after loading: all deadlines are renewed,
/// and the bytes shown to the user stay those of the weights.
class AfterLoading final : public WaitMonitor {
 public:
  AfterLoading(WaitMonitor& monitor, uint64_t loaded_bytes)
      : monitor_(monitor), loaded_bytes_(loaded_bytes) {}

  void poll() override { monitor_.poll(); }
  void progressed(const WorkProgress& progress) override {
    monitor_.progressed({progress.what, "", loaded_bytes_, loaded_bytes_, progress.ended});
  }
  [[nodiscard]] bool overdue(const Deadline& deadline) const override {
    return monitor_.overdue(deadline);
  }

 private:
  WaitMonitor& monitor_;
  uint64_t loaded_bytes_;
};

}  // namespace

TrainerStandIn::TrainerStandIn(const TrainerParts& parts)
    : parts_(parts),
      state_(parts.common.layout),
      weights_(parts.common.device, "trainer weights", Tag::kWeights, parts.weights_bytes,
               &parts.common.ledger) {
  if (!parts.optimizer) return;
  optimizer_.emplace(parts.common.device, "trainer optimizer", Tag::kOptimizer, state_.bytes(),
                     &parts.common.ledger);
  // Routers' correction biases are fp32 among bf16 weights.
  std::set<DType> dtypes;
  for (const auto& parameter : parts.common.layout.parameters) dtypes.insert(parameter.dtype);
  for (const DType dtype : dtypes) {
    adamw_.push_back(make_adamw(parts.common.device, parts.common.kernels, optimizer_views(dtype),
                                dtype, parts.threads));
  }
}

Region* TrainerStandIn::region(Tag tag) {
  switch (tag) {
    case Tag::kWeights:
      return &weights_;
    case Tag::kOptimizer:
      return optimizer_ ? &*optimizer_ : nullptr;
    case Tag::kKvCache:
      return nullptr;
  }
  return nullptr;
}

std::vector<Parameter> TrainerStandIn::tensors(Tag tag) const {
  switch (tag) {
    case Tag::kWeights:
      return parts_.common.layout.parameters;
    case Tag::kOptimizer:
      if (optimizer_) return state_.tensors(parts_.common.layout);
      return {};
    case Tag::kKvCache:
      return {};
  }
  return {};
}

void TrainerStandIn::load(const Deadline& deadline, WaitMonitor& monitor) {
  const auto& common = parts_.common;
  weights_.take(deadline, monitor);
  window_ = common.device.allocate_host(load_window_bytes(common.catalogue, common.layout));
  const uint64_t loaded = load_region(parts_.source, common.layout, placed(Tag::kWeights), *window_,
                                      common.queue, parts_.threads.threads(), deadline, monitor);
  window_.reset();
  if (!optimizer_) return;
  optimizer_->take(Deadline(deadline.allowed()), monitor);
  AfterLoading after(monitor, loaded);
  clear_optimizer(deadline.allowed(), after);
  initialise_optimizer(deadline.allowed(), after);
}

/// Rows that pad a parameter (of the vocabulary) are proven with it, and no shard initialises them:
/// their state is zero, as the weights there are.
void TrainerStandIn::clear_optimizer(Seconds silence, WaitMonitor& monitor) {
  constexpr uint64_t kAtOnce = 32ULL << 20;
  auto& queue = parts_.common.queue;
  const PlacedMemory state = placed(Tag::kOptimizer);
  const uint64_t bytes = optimizer_->bytes();
  for (uint64_t at = 0; at < bytes; at += kAtOnce) {
    const uint64_t now = std::min(kAtOnce, bytes - at);
    queue.fill_zero(state.at(at, now), now);
    queue.finish("clearing the optimizer state", Deadline(silence), monitor);
    monitor.progressed({kInitialising, "", at, bytes, false});
  }
}

void TrainerStandIn::initialise_optimizer(Seconds silence, WaitMonitor& monitor) {
  const auto initialise = [this] {
    for (const auto& adamw : adamw_) adamw->initialise();
  };
  switch (parts_.common.device.kind()) {
    case BackendKind::kHost:  // this thread goes on telling how far it is
      work::attend(
          initialise,
          {kInitialising, 0, OptimizerState::initialised_bytes(parts_.common.layout), false},
          silence, monitor);
      return;
    case BackendKind::kCuda:
      initialise();
      parts_.common.kernels.wait(kInitialising, Deadline(silence), monitor);
      monitor.progressed({kInitialising, "", 0, 0, true});
      return;
  }
}

void TrainerStandIn::train(const Deadline& deadline, WaitMonitor& monitor) {
  if (!optimizer_) return;
  const AdamWStep step = make_step({}, ++steps_);
  for (const auto& adamw : adamw_) adamw->step(step);
  parts_.common.kernels.wait(fmt::format("train step {}", steps_), deadline, monitor);
}

std::vector<AdamWView> TrainerStandIn::optimizer_views(DType dtype) {
  const PlacedMemory weights = placed(Tag::kWeights);
  const PlacedMemory state = placed(Tag::kOptimizer);
  const auto& layout = parts_.common.layout;
  std::vector<AdamWView> views;
  for (const auto& shard : layout.shards) {
    const TensorInfo& tensor = parts_.common.catalogue.tensors()[shard.tensor];
    if (tensor.dtype != dtype) continue;
    const Parameter& parameter = layout.parameters[shard.parameter];
    const uint64_t element = element_bytes(tensor.dtype);
    const uint64_t in_parameter = (shard.offset_bytes - parameter.offset_bytes) / element;
    const auto state_rows = [&](uint64_t array) -> PlacedRows {
      const uint64_t first =
          array * state_.array_elements() + state_.start(shard.parameter) + in_parameter;
      return {&state, first * sizeof(float), shard.row_stride * sizeof(float), sizeof(float)};
    };
    const std::array sides{
        PlacedRows{&weights, shard.offset_bytes, shard.row_stride * element, element},
        state_rows(0), state_rows(1), state_rows(2)};
    const auto floats = [&](const RowBlock& block, size_t array) {
      return reinterpret_cast<float*>(address_of(block, sides.at(1 + array)));
    };
    const auto& box = shard.box;
    for (const auto& block : cut_rows(box.rows.size(), box.cols.size(), sides)) {
      views.push_back(
          {.weights = address_of(block, sides[0]),
           .master = floats(block, 0),
           .exp_avg = floats(block, 1),
           .exp_avg_sq = floats(block, 2),
           .rows = block.rows,
           .cols = block.cols,
           .row_stride = shard.row_stride,
           .first_index = (box.rows.begin + block.row) * tensor.cols + box.cols.begin + block.col,
           .canonical_cols = tensor.cols,
           .key = tensor_key(tensor.name)});
    }
  }
  return views;
}

}  // namespace awex
