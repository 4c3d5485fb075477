// Replicas of a tensor that differ are found, whatever their errors add up to, and whose they are
// is told: against elements that are compared one by one.
#include "transfer/prove/tensor_digests.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "layout/engines.hpp"
#include "model/digest.hpp"
#include "plan/plan_shards.hpp"
#include "support/random_model.hpp"
#include "transfer/prove/odd_replicas.hpp"

namespace awex::test {
namespace {

using Bits = uint16_t;

Catalogue small_model() {
  ModelConfig config;
  config.family = "qwen3";
  config.layers = 2;
  config.hidden = 8;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 2;
  config.intermediate = 12;
  config.vocab = 64;
  config.qk_norm = true;
  return make_catalogue("small", config);
}

/// All ranks of a role with the elements that they hold.
class RoleMemory {
 public:
  RoleMemory(const Catalogue& catalogue, const Layout& layout) : catalogue_(catalogue) {
    for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
      layouts_.push_back(layout.rank_layout(rank));
      memory_.emplace_back(layouts_.back().bytes / sizeof(Bits));
    }
    replicas_of_tensors_ = RoleShards(catalogue, layout).replicas_of_tensors(catalogue);
    for_each([](uint32_t tensor, uint64_t index, uint32_t, int, Bits& bits) {
      bits = static_cast<Bits>(mix64(identity_of(tensor, index)));
    });
  }

  [[nodiscard]] const std::vector<uint64_t>& replicas_of_tensors() const {
    return replicas_of_tensors_;
  }

  /// Calls visit(tensor, index, replica, rank, bits) for every element that a rank holds.
  template <class Visit>
  void for_each(const Visit& visit) {
    for (size_t rank = 0; rank < layouts_.size(); ++rank) {
      for (const auto& shard : layouts_[rank].shards) {
        const uint64_t cols = catalogue_.tensors()[shard.tensor].cols;
        for (uint64_t row = 0; row < shard.box.rows.size(); ++row) {
          for (uint64_t col = 0; col < shard.box.cols.size(); ++col) {
            const uint64_t at = shard.offset_bytes / sizeof(Bits) + row * shard.row_stride + col;
            visit(shard.tensor, (shard.box.rows.begin + row) * cols + shard.box.cols.begin + col,
                  shard.replica, static_cast<int>(rank), memory_[rank][at]);
          }
        }
      }
    }
  }

  /// By entry of held_replicas, element by element.
  [[nodiscard]] std::vector<uint64_t> sums(size_t rank) const {
    auto copy = memory_[rank];
    return sums_in(rank, {reinterpret_cast<std::byte*>(copy.data()), layouts_[rank].bytes});
  }

  /// The same of a copy in segments of odd sizes, the last of which come first.
  [[nodiscard]] std::vector<uint64_t> scattered_sums(size_t rank, uint64_t elements) const {
    constexpr uint64_t kSlotElements = 1024;
    const auto& all = memory_[rank];
    std::vector<Bits> scattered((all.size() / elements + 1) * kSlotElements, 0xeeee);
    std::vector<MemorySegment> segments;
    auto* end = scattered.data() + scattered.size();
    for (uint64_t at = 0; at < all.size(); at += elements) {
      const uint64_t here = std::min(elements, all.size() - at);
      end -= kSlotElements;
      Bits* to = end + at % 4;  // aligned as it is in the whole
      std::copy_n(all.data() + at, here, to);
      segments.push_back(
          {at * sizeof(Bits), reinterpret_cast<std::byte*>(to), here * sizeof(Bits)});
    }
    return sums_in(rank, {"scattered weights", segments});
  }

  [[nodiscard]] std::vector<uint64_t> sums_in(size_t rank, const PlacedMemory& memory) const {
    std::vector<uint64_t> sums(held_replicas(layouts_[rank]).size(), 0);
    for (const auto& view : shard_views(catalogue_, layouts_[rank], memory)) {
      const auto* bits = reinterpret_cast<const Bits*>(view.data);
      for (uint64_t row = 0; row < view.rows; ++row) {
        for (uint64_t col = 0; col < view.cols; ++col) {
          sums[view.sum] +=
              digest_term(view.key, view.first_index + row * view.canonical_cols + col,
                          bits[row * view.row_stride + col]);
        }
      }
    }
    return sums;
  }

  [[nodiscard]] std::vector<uint64_t> role_sums() const {
    const size_t tensors = catalogue_.tensors().size();
    std::vector<uint64_t> all(2 * tensors, 0);
    for (size_t rank = 0; rank < layouts_.size(); ++rank) {
      const auto terms = rank_terms(tensors, held_replicas(layouts_[rank]), sums(rank));
      for (size_t i = 0; i < all.size(); ++i) all[i] += terms[i];
    }
    return all;
  }

  [[nodiscard]] std::vector<ReplicaSum> replicas_of(uint32_t tensor) const {
    std::vector<ReplicaSum> replicas;
    for (size_t rank = 0; rank < layouts_.size(); ++rank) {
      const auto held = held_replicas(layouts_[rank]);
      const auto own = sums(rank);
      for (size_t i = 0; i < held.size(); ++i) {
        if (held[i].tensor == tensor) replicas.push_back({static_cast<int>(rank), held[i], own[i]});
      }
    }
    return replicas;
  }

 private:
  const Catalogue& catalogue_;
  std::vector<RankLayout> layouts_;
  std::vector<std::vector<Bits>> memory_;
  std::vector<uint64_t> replicas_of_tensors_;
};

/// What is added to an element of some replicas (by number).
struct Drift {
  uint32_t tensor = 0;
  uint64_t index = 0;
  std::map<uint32_t, Bits> by_replica;

  /// Adds it to `role`, or takes it away. Returns the ranks that hold what it changes.
  std::set<int> apply(RoleMemory& role, bool undo) const {
    std::set<int> ranks;
    role.for_each([&](uint32_t t, uint64_t i, uint32_t replica, int rank, Bits& bits) {
      const auto found = by_replica.find(replica);
      if (t != tensor || i != index || found == by_replica.end()) return;
      bits = static_cast<Bits>(undo ? bits - found->second : bits + found->second);
      ranks.insert(rank);
    });
    return ranks;
  }

  [[nodiscard]] Bits of(uint32_t replica) const {
    const auto found = by_replica.find(replica);
    return found == by_replica.end() ? Bits{0} : found->second;
  }
};

/// Small steps and single bits, up and down: what cancels most easily. Often it adds up to nothing.
Drift random_drift(Dice& dice, const Catalogue& catalogue, const RoleMemory& role) {
  Drift drift;
  do {
    drift.tensor = static_cast<uint32_t>(dice.below(catalogue.tensors().size()));
  } while (role.replicas_of_tensors()[drift.tensor] < 2);
  drift.index = dice.below(catalogue.tensors()[drift.tensor].elements());
  const auto count = static_cast<uint32_t>(role.replicas_of_tensors()[drift.tensor]);
  std::vector<uint32_t> replicas(count);
  for (uint32_t i = 0; i < count; ++i) replicas[i] = i;
  dice.shuffle(replicas);
  const int unit = dice.one_in(4) ? 1 << dice.below(16) : 1;
  int sum = 0;
  for (uint64_t i = 0, changed = dice.between(1, count); i < changed; ++i) {
    int steps = static_cast<int>(dice.between(1, 3)) * (dice.one_in(2) ? 1 : -1);
    if (i + 1 == changed && sum != 0 && dice.one_in(2)) steps = -sum;
    sum += steps;
    drift.by_replica[replicas[i]] = static_cast<Bits>(steps * unit);
  }
  std::erase_if(drift.by_replica, [](const auto& entry) { return entry.second == 0; });
  return drift;
}

struct Specs {
  std::string trainer;
  std::string inference;
};

/// Some with replicas that are spread over ranks, some whole, some with both.
const std::vector<Specs> kSpecs = {{"megatron:tp=1", "sglang:tp=1"},
                                   {"megatron:tp=2", "sglang:tp=2"},
                                   {"fsdp:shard=2", "vllm:tp=1"},
                                   {"megatron:tp=1,pp=2", "vllm:tp=2"},
                                   {"hf", "hf"}};

/// What one role's drift must do, element by element: `truth` is what the trainer's first replica
/// adds.
struct Expected {
  bool differ_among_themselves = false;
  bool differ_from_truth = false;
  size_t most_alike = 0;  ///< How many replicas have the bits that most have.
  size_t like_truth = 0;
};

Expected expected(const Drift& drift, const RoleMemory& role, Bits truth) {
  Expected result;
  std::map<Bits, size_t> votes;
  const uint64_t replicas = role.replicas_of_tensors()[drift.tensor];
  for (uint32_t replica = 0; replica < replicas; ++replica) ++votes[drift.of(replica)];
  for (const auto& [bits, count] : votes) result.most_alike = std::max(result.most_alike, count);
  result.differ_among_themselves = votes.size() > 1;
  result.like_truth = votes[truth];
  result.differ_from_truth = result.like_truth < replicas;
  return result;
}

/// The ranks that hold elements whose drift is not `right`.
std::vector<int> holders(const Drift& drift, RoleMemory& role, Bits right) {
  std::set<int> ranks;
  role.for_each([&](uint32_t t, uint64_t i, uint32_t replica, int rank, Bits&) {
    if (t == drift.tensor && i == drift.index && drift.of(replica) != right) ranks.insert(rank);
  });
  return {ranks.begin(), ranks.end()};
}

/// The drift that more than half of the replicas share.
std::optional<Bits> shared_by_most(const Drift& drift, const RoleMemory& role) {
  std::map<Bits, size_t> votes;
  const uint64_t replicas = role.replicas_of_tensors()[drift.tensor];
  for (uint32_t replica = 0; replica < replicas; ++replica) {
    if (2 * ++votes[drift.of(replica)] > replicas) return drift.of(replica);
  }
  return std::nullopt;
}

}  // namespace

TEST_CASE("memory in pieces has the digests of the same memory in one") {
  const Catalogue catalogue = small_model();
  for (const char* spec : {"sglang:tp=1", "sglang:tp=2", "vllm:tp=2", "hf"}) {
    CAPTURE(spec);
    const auto layout = make_inference_layout(spec, catalogue, 2);
    const RoleMemory memory(catalogue, *layout);
    for (size_t rank = 0; rank < 2; ++rank) {
      for (const uint64_t elements : {7, 50, 1000}) {
        CHECK(memory.scattered_sums(rank, elements) == memory.sums(rank));
      }
    }
  }
}

TEST_CASE("errors of replicas on either side never cancel, and their ranks are named") {
  constexpr uint32_t kRanks = 6;
  const Catalogue catalogue = small_model();
  Dice dice(20261127);
  int cancelled_in_a_plain_sum = 0;
  for (const auto& specs : kSpecs) {
    CAPTURE(specs.trainer);
    CAPTURE(specs.inference);
    const auto trainer_layout = make_trainer_layout(specs.trainer, catalogue, kRanks);
    const auto inference_layout = make_inference_layout(specs.inference, catalogue, kRanks);
    RoleMemory trainer(catalogue, *trainer_layout);
    RoleMemory inference(catalogue, *inference_layout);
    const auto compare = [&] {
      return compare_digests(catalogue, trainer.role_sums(), trainer.replicas_of_tensors(),
                             inference.role_sums(), inference.replicas_of_tensors());
    };
    const auto equal = compare();
    CHECK(equal.wrong_tensors.empty());
    CHECK(equal.diverged_tensors.empty());

    for (int run = 0; run < random_cases(200); ++run) {
      const bool trains = dice.one_in(2);
      RoleMemory& role = trains ? trainer : inference;
      const Drift drift = random_drift(dice, catalogue, role);
      drift.apply(role, false);
      const Bits truth = trains ? drift.of(0) : Bits{0};
      const auto wanted = expected(drift, role, truth);
      const std::vector<uint32_t> only{drift.tensor};
      const std::vector<uint32_t> none;
      const auto found = compare();
      CHECK(found.diverged_tensors == (trains && wanted.differ_among_themselves ? only : none));
      const bool is_wrong = trains ? truth != 0 : wanted.differ_from_truth;
      CHECK(found.wrong_tensors == (is_wrong ? only : none));

      const auto right = trains ? shared_by_most(drift, role) : std::optional<Bits>(0);
      const auto odd =
          odd_ranks(role.replicas_of(drift.tensor),
                    trains ? std::nullopt : std::optional(trainer.role_sums()[drift.tensor]));
      const bool can_tell =
          right && holders(drift, role, *right).size() > 0 && (trains || wanted.like_truth > 0);
      CHECK(odd == (can_tell ? holders(drift, role, *right) : std::vector<int>()));

      Bits sum = 0;
      for (const auto& [replica, bits] : drift.by_replica) {
        if (replica != 0) sum = static_cast<Bits>(sum + bits);
      }
      const bool first_is_right = drift.of(0) == 0;
      if (sum == 0 && first_is_right && !drift.by_replica.empty()) ++cancelled_in_a_plain_sum;
      drift.apply(role, true);
    }
  }
  CHECK(cancelled_in_a_plain_sum > random_cases(1000) / 20);
}

TEST_CASE("an element that is raised in one replica and lowered in another is found for certain") {
  // Its two errors are opposite and have at most 31 trailing zero bits, so they cancel only when
  // the keys of the replicas agree in 33 low bits: no two of so many do.
  constexpr uint32_t kCopies = 1U << 16;
  std::vector<uint32_t> low_bits;
  low_bits.reserve(kCopies);
  for (uint32_t replica = 0; replica < kCopies; ++replica) {
    const uint64_t key = replica_key(replica);
    CHECK_MESSAGE(key % 2 == 1, replica);
    low_bits.push_back(static_cast<uint32_t>(key >> 1));
  }
  std::sort(low_bits.begin(), low_bits.end());
  CHECK(std::adjacent_find(low_bits.begin(), low_bits.end()) == low_bits.end());
}

TEST_CASE("one replica in doubt: nobody is blamed without a majority") {
  const HeldReplica whole{0, 0, 1};
  const auto sum_of = [&](int rank, uint32_t replica, uint64_t sum) {
    return ReplicaSum{rank, {whole.tensor, replica, whole.boxes}, sum};
  };
  const std::vector<ReplicaSum> two{sum_of(3, 0, 7), sum_of(5, 1, 8)};
  CHECK(odd_ranks(two, std::nullopt).empty());
  CHECK(odd_ranks(two, 7) == std::vector{5});
  CHECK(odd_ranks(two, 8) == std::vector{3});
  CHECK(odd_ranks(two, 9).empty());
  const std::vector<ReplicaSum> three{sum_of(3, 0, 7), sum_of(5, 1, 8), sum_of(4, 2, 8)};
  CHECK(odd_ranks(three, std::nullopt) == std::vector{3});
}

}  // namespace awex::test
