#include "cycle/readiness.hpp"

#include <algorithm>
#include <map>
#include <numeric>

namespace awex {
namespace {

/// Of a GPU's free memory left to what trainers take beside the job,
constexpr uint64_t kSpareBytes = 1ULL << 30;
/// and to what inference takes, before much of the trainers' has gone: an eighth of all. An engine
/// that generates allocates for the largest batch that it takes on (vLLM with its defaults sets a
/// tenth of the GPU aside for what it cannot foresee).
constexpr uint64_t kInferencePart = 8;

/// A GPU, as its ranks see it.
struct Gpu {
  uint64_t lacking_bytes = 0;  ///< What the ranks of a role lack of their memory.
  uint64_t room_bytes = UINT64_MAX;
  uint64_t free_bytes = UINT64_MAX;
  uint64_t total_bytes = 0;

  /// What has to become free before they have that and `spare_bytes` are free beside it.
  [[nodiscard]] uint64_t missing_bytes(uint64_t spare_bytes) const {
    const auto more_than = [](uint64_t wanted, uint64_t there) {
      return wanted - std::min(wanted, there);
    };
    return std::max(more_than(lacking_bytes, room_bytes),
                    more_than(lacking_bytes + spare_bytes, free_bytes));
  }
};

/// By number; `lacking_bytes` of the ranks of `role`.
std::map<uint32_t, Gpu> gpus_of(std::span<const Holding> ranks, std::span<const uint32_t> gpus,
                                Role role) {
  std::map<uint32_t, Gpu> all;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const Holding& one = ranks[rank];
    Gpu& gpu = all[gpus[rank]];
    gpu.room_bytes = std::min(gpu.room_bytes, one.room_bytes);
    gpu.free_bytes = std::min(gpu.free_bytes, one.free_bytes);
    gpu.total_bytes = std::max(gpu.total_bytes, one.total_bytes);
    if (one.role != role) continue;
    gpu.lacking_bytes +=
        std::accumulate(one.lacking_bytes.begin(), one.lacking_bytes.end(), uint64_t{0});
  }
  return all;
}

/// What is looked for among the ranks of a role.
class Holdings {
 public:
  explicit Holdings(std::span<const Holding> ranks) : ranks_(ranks) {}

  /// Whether some trainer's memory of a tag is anywhere but on the device.
  [[nodiscard]] bool is_away(Tag tag) const {
    const bool is_released = any_trainer(
        [tag](const Holding& rank) { return rank.is_released.at(static_cast<size_t>(tag)); });
    return is_released || any(Role::kTrainer, tag, [](RegionState state) {
             return state != RegionState::kResident && state != RegionState::kDiscarded;
           });
  }
  /// The steps to which trainers have come, where some have not; else 0.
  [[nodiscard]] uint64_t steps_to_catch_up() const {
    uint64_t most = 0;
    bool differ = false;
    const Holding* first = nullptr;
    for (const auto& rank : ranks_) {
      if (rank.role != Role::kTrainer) continue;
      if (first == nullptr) first = &rank;
      differ = differ || rank.trained != first->trained;
      most = std::max(most, rank.trained);
    }
    return differ ? most : 0;
  }
  [[nodiscard]] bool any_must_return(Tag tag) const {
    return any_trainer(
        [tag](const Holding& rank) { return rank.must_return.at(static_cast<size_t>(tag)); });
  }
  /// Any of the device's.
  [[nodiscard]] bool trainers_hold(Tag tag) const {
    return any_trainer(
        [tag](const Holding& rank) { return rank.held_bytes.at(static_cast<size_t>(tag)) > 0; });
  }
  [[nodiscard]] bool inference_holds(Tag tag) const {
    return any(Role::kInference, tag,
               [](RegionState state) { return state == RegionState::kResident; });
  }
  [[nodiscard]] bool any_lends() const {
    return std::any_of(ranks_.begin(), ranks_.end(),
                       [](const Holding& rank) { return rank.lends; });
  }
  [[nodiscard]] bool any_has_mapped() const { return some_inference(true); }
  [[nodiscard]] bool any_has_not_mapped() const { return some_inference(false); }

 private:
  template <class Is>
  [[nodiscard]] bool any_trainer(const Is& is) const {
    return std::any_of(ranks_.begin(), ranks_.end(), [&](const Holding& rank) {
      return rank.role == Role::kTrainer && is(rank);
    });
  }
  template <class Is>
  [[nodiscard]] bool any(Role role, Tag tag, const Is& is) const {
    return std::any_of(ranks_.begin(), ranks_.end(), [&](const Holding& rank) {
      const auto& state = rank.regions.at(static_cast<size_t>(tag));
      return rank.role == role && state && is(*state);
    });
  }
  [[nodiscard]] bool some_inference(bool has_mapped) const {
    return std::any_of(ranks_.begin(), ranks_.end(), [&](const Holding& rank) {
      return rank.role == Role::kInference && rank.has_mapped == has_mapped;
    });
  }

  std::span<const Holding> ranks_;
};

/// Weights that come back lie in other chunks than those that are mapped; whether what is lent is
/// what is open, the swap of handles finds.
void prepare_mapping(const Holdings& ranks, Preparation& needed) {
  needed.map = needed.restore_weights || ranks.any_has_not_mapped() || ranks.any_lends();
  needed.unmap = needed.map && ranks.any_has_mapped();
}

}  // namespace

bool serves_what_trainers_hold(std::span<const Holding> ranks) {
  return std::all_of(ranks.begin(), ranks.end(), [](const Holding& rank) {
    if (rank.role == Role::kTrainer) return rank.trained == rank.committed && !rank.is_changed;
    return rank.regions.at(static_cast<size_t>(Tag::kWeights)) == RegionState::kResident;
  });
}

Preparation preparation_for(Command command, std::span<const Holding> ranks) {
  const Holdings all(ranks);
  Preparation needed;
  switch (command) {
    case Command::kUpdate:
      needed.train_to = all.steps_to_catch_up();
      needed.restore_optimizer = all.is_away(Tag::kOptimizer);
      needed.restore_weights = all.is_away(Tag::kWeights);
      prepare_mapping(all, needed);
      break;
    case Command::kHandOver:
    case Command::kTransfer:
      needed.train_to = all.steps_to_catch_up();
      needed.restore_optimizer = all.any_must_return(Tag::kOptimizer) ||
                                 (needed.train_to > 0 && all.is_away(Tag::kOptimizer));
      needed.restore_weights = all.is_away(Tag::kWeights);
      prepare_mapping(all, needed);
      break;
    case Command::kOffload:
      needed.restore_optimizer = all.any_must_return(Tag::kOptimizer);
      needed.restore_weights = all.any_must_return(Tag::kWeights);
      needed.unmap = all.any_has_mapped();
      break;
    case Command::kResume:
    case Command::kTakeBack:
      needed.discard_kv_cache = all.inference_holds(Tag::kKvCache);
      needed.discard_weights = all.inference_holds(Tag::kWeights);
      return needed;
  }
  // The trainers' weights and inference's have room side by side; nothing else beside them has.
  const bool restores = needed.restore_optimizer || needed.restore_weights;
  const bool fills =
      needed.restore_optimizer || (needed.restore_weights && all.trainers_hold(Tag::kOptimizer));
  needed.discard_kv_cache = restores && all.inference_holds(Tag::kKvCache);
  needed.discard_weights = fills && all.inference_holds(Tag::kWeights);
  return needed;
}

bool has_room_for_trainers(std::span<const Holding> ranks, std::span<const uint32_t> gpus) {
  const auto all = gpus_of(ranks, gpus, Role::kTrainer);
  return std::all_of(all.begin(), all.end(), [](const auto& one) {
    return one.second.lacking_bytes == 0 || one.second.missing_bytes(kSpareBytes) == 0;
  });
}

std::vector<uint64_t> bytes_to_make_room(std::span<const Holding> ranks,
                                         std::span<const uint32_t> gpus) {
  std::map<uint32_t, uint64_t> missing;
  for (const auto& [gpu, memory] : gpus_of(ranks, gpus, Role::kInference)) {
    missing[gpu] = memory.missing_bytes(memory.total_bytes / kInferencePart);
  }
  std::vector<uint64_t> given(ranks.size());
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    if (ranks[rank].role != Role::kTrainer) continue;
    uint64_t& still = missing[gpus[rank]];
    given[rank] = std::min(ranks[rank].held_bytes.at(static_cast<size_t>(Tag::kOptimizer)), still);
    still -= given[rank];
  }
  return given;
}

Preparation preparation_to_train(std::span<const Holding> ranks, TakenBack what) {
  Preparation needed = preparation_for(Command::kUpdate, ranks);
  needed.discard_kv_cache = needed.discard_weights = false;
  needed.train_to = 0;
  if (what == TakenBack::kWeights) needed.restore_optimizer = false;
  return needed;
}

Preparation preparation_while_serving(std::span<const Holding> ranks) {
  Preparation needed = preparation_for(Command::kOffload, ranks);
  needed.discard_weights = false;
  return needed;
}

}  // namespace awex
