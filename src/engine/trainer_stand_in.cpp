#include "engine/trainer_stand_in.hpp"

#include <algorithm>
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
  auto& [catalogue, layout, device, ledger, kernels, queue] = parts_.common;
  weights_.take(deadline, monitor);
  window_ = device.allocate_host(load_window_bytes(catalogue, layout));
  const uint64_t loaded = load_region(parts_.source, layout, weights_, *window_, queue,
                                      parts_.threads.threads(), deadline, monitor);
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
  const uint64_t bytes = optimizer_->bytes();
  for (uint64_t at = 0; at < bytes; at += kAtOnce) {
    queue.fill_zero(optimizer_->data() + at, std::min(kAtOnce, bytes - at));
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

std::vector<AdamWView> TrainerStandIn::optimizer_views(DType dtype) const {
  auto* state = reinterpret_cast<float*>(optimizer_->data());
  const auto& layout = parts_.common.layout;
  std::vector<AdamWView> views;
  for (const auto& shard : layout.shards) {
    const TensorInfo& tensor = parts_.common.catalogue.tensors()[shard.tensor];
    if (tensor.dtype != dtype) continue;
    const Parameter& parameter = layout.parameters[shard.parameter];
    const uint64_t in_parameter =
        (shard.offset_bytes - parameter.offset_bytes) / element_bytes(tensor.dtype);
    float* master = state + state_.start(shard.parameter) + in_parameter;
    views.push_back({.weights = weights_.data() + shard.offset_bytes,
                     .master = master,
                     .exp_avg = master + state_.array_elements(),
                     .exp_avg_sq = master + 2 * state_.array_elements(),
                     .rows = shard.box.rows.size(),
                     .cols = shard.box.cols.size(),
                     .row_stride = shard.row_stride,
                     .first_index = shard.box.rows.begin * tensor.cols + shard.box.cols.begin,
                     .canonical_cols = tensor.cols,
                     .key = tensor_key(tensor.name)});
  }
  return views;
}

}  // namespace awex
