#include "engine/trainer_stand_in.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "base/checked.hpp"
#include "base/work_progress.hpp"
#include "engine/region_loader.hpp"

namespace awex {
namespace {

constexpr std::array<const char*, 3> kStates{"master", "exp_avg", "exp_avg_sq"};

/// Where each parameter's state begins in each of the three fp32 arrays, in elements, and behind
/// the last one the length of an array. Starts are aligned like parameters are.
std::vector<uint64_t> state_starts(const RankLayout& layout) {
  constexpr uint64_t kStep = kParameterAlignment / sizeof(float);
  std::vector<uint64_t> starts{0};
  for (const auto& parameter : layout.parameters) {
    starts.push_back(starts.back() + round_up(parameter.elements(), kStep));
  }
  return starts;
}

/// Of what shards initialise.
uint64_t state_bytes(const RankLayout& layout) {
  uint64_t elements = 0;
  for (const auto& shard : layout.shards) elements += shard.box.rows.size() * shard.box.cols.size();
  return elements * kStates.size() * sizeof(float);
}

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

uint64_t TrainerStandIn::optimizer_bytes(const RankLayout& layout) {
  return state_starts(layout).back() * kStates.size() * sizeof(float);
}

TrainerStandIn::TrainerStandIn(const Catalogue& catalogue, RankLayout layout,
                               uint64_t weights_bytes, bool with_optimizer, Device& device,
                               MemoryLedger& ledger, Kernels& kernels, ThreadPool& threads)
    : catalogue_(catalogue),
      layout_(std::move(layout)),
      kernels_(kernels),
      threads_(threads),
      weights_(device, "trainer weights", Tag::kWeights, weights_bytes, &ledger) {
  if (!with_optimizer) return;
  optimizer_.emplace(device, "trainer optimizer", Tag::kOptimizer, optimizer_bytes(layout_),
                     &ledger);
  // Routers' correction biases are fp32 among bf16 weights.
  std::set<DType> dtypes;
  for (const auto& parameter : layout_.parameters) dtypes.insert(parameter.dtype);
  for (const DType dtype : dtypes) {
    adamw_.push_back(make_adamw(device, kernels, optimizer_views(dtype), dtype, threads));
  }
}

void TrainerStandIn::load(const WeightSource& source, Device& device, CopyQueue& queue,
                          const Deadline& deadline, WaitMonitor& monitor) {
  weights_.take(deadline, monitor);
  window_ = device.allocate_host(load_window_bytes(catalogue_, layout_));
  const uint64_t loaded = load_region(source, layout_, weights_, *window_, queue,
                                      threads_.threads(), deadline, monitor);
  window_.reset();
  if (!optimizer_) return;
  optimizer_->take(Deadline(deadline.allowed()), monitor);
  AfterLoading after(monitor, loaded);
  clear_optimizer(queue, deadline.allowed(), after);
  initialise_optimizer(device, deadline.allowed(), after);
}

/// Rows that pad a parameter (of the vocabulary) are proven with it, and no shard initialises them:
/// their state is zero, as the weights there are.
void TrainerStandIn::clear_optimizer(CopyQueue& queue, Seconds silence, WaitMonitor& monitor) {
  constexpr uint64_t kAtOnce = 256ULL << 20;
  const uint64_t bytes = optimizer_->bytes();
  for (uint64_t at = 0; at < bytes; at += kAtOnce) {
    queue.fill_zero(optimizer_->data() + at, std::min(kAtOnce, bytes - at));
    queue.finish("clearing the optimizer state", Deadline(silence), monitor);
    monitor.progressed({kInitialising, "", at, bytes, false});
  }
}

void TrainerStandIn::initialise_optimizer(const Device& device, Seconds silence,
                                          WaitMonitor& monitor) {
  const auto initialise = [this] {
    for (const auto& adamw : adamw_) adamw->initialise();
  };
  switch (device.kind()) {
    case BackendKind::kHost:  // this thread goes on telling how far it is
      work::attend(initialise, {kInitialising, 0, state_bytes(layout_), false}, silence, monitor);
      return;
    case BackendKind::kCuda:
      initialise();
      kernels_.wait(kInitialising, Deadline(silence), monitor);
      monitor.progressed({kInitialising, "", 0, 0, true});
      return;
  }
}

void TrainerStandIn::train(const Deadline& deadline, WaitMonitor& monitor) {
  if (!optimizer_) return;
  const AdamWStep step = make_step({}, ++steps_);
  for (const auto& adamw : adamw_) adamw->step(step);
  kernels_.wait(fmt::format("train step {}", steps_), deadline, monitor);
}

std::vector<AdamWView> TrainerStandIn::optimizer_views(DType dtype) const {
  const auto starts = state_starts(layout_);
  auto* state = reinterpret_cast<float*>(optimizer_->data());
  std::vector<AdamWView> views;
  for (const auto& shard : layout_.shards) {
    const TensorInfo& tensor = catalogue_.tensors()[shard.tensor];
    if (tensor.dtype != dtype) continue;
    const Parameter& parameter = layout_.parameters[shard.parameter];
    const uint64_t in_parameter =
        (shard.offset_bytes - parameter.offset_bytes) / element_bytes(tensor.dtype);
    float* master = state + starts[shard.parameter] + in_parameter;
    views.push_back({.weights = weights_.data() + shard.offset_bytes,
                     .master = master,
                     .exp_avg = master + starts.back(),
                     .exp_avg_sq = master + 2 * starts.back(),
                     .rows = shard.box.rows.size(),
                     .cols = shard.box.cols.size(),
                     .row_stride = shard.row_stride,
                     .first_index = shard.box.rows.begin * tensor.cols + shard.box.cols.begin,
                     .canonical_cols = tensor.cols,
                     .key = tensor_key(tensor.name)});
  }
  return views;
}

std::vector<Segment> TrainerStandIn::weight_segments() const {
  std::vector<Segment> segments;
  for (const auto& parameter : layout_.parameters) {
    segments.push_back({parameter.name, parameter.offset_bytes, parameter.bytes(),
                        narrow<uint32_t>(element_bytes(parameter.dtype))});
  }
  return segments;
}

std::vector<Segment> TrainerStandIn::optimizer_segments() const {
  const auto starts = state_starts(layout_);
  std::vector<Segment> segments;
  for (uint64_t s = 0; s < kStates.size(); ++s) {
    for (size_t p = 0; p < layout_.parameters.size(); ++p) {
      const auto& parameter = layout_.parameters[p];
      segments.push_back({fmt::format("{} of {}", kStates.at(s), parameter.name),
                          (s * starts.back() + starts[p]) * sizeof(float),
                          parameter.elements() * sizeof(float), sizeof(float)});
    }
  }
  return segments;
}

}  // namespace awex
