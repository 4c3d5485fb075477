#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "cycle/accounting.hpp"
#include "cycle/options.hpp"
#include "memory/region.hpp"

namespace awex {

/// What one rank holds at a quiet moment. Plain data, to be gathered.
struct Holding {
  Role role = Role::kTrainer;
  std::array<std::optional<RegionState>, kTags> regions{};  ///< By Tag; absent: holds none of it.
  bool lends = false;       ///< A trainer: weights of its own, which may be others at any time.
  bool has_mapped = false;  ///< An inference rank: its trainer's weights.
  uint64_t trained = 0;     ///< A trainer's steps,
  uint64_t committed = 0;   ///< and how many of them are in the version that was committed last.
  bool is_changed = false;  ///< Its weights may have changed since, beside its steps.
  /// By Tag: the engine takes it for released, wherever its bytes are.
  std::array<bool, kTags> is_released{};
  /// By Tag, a trainer's: a move of it has failed midway, and it has to come back before it can go.
  std::array<bool, kTags> must_return{};
  std::array<uint64_t, kTags> held_bytes{};     ///< By Tag: what its memory holds of the device's,
  std::array<uint64_t, kTags> lacking_bytes{};  ///< and what it lacks.
  uint64_t room_bytes = 0;   ///< What may still be taken of its GPU by the books,
  uint64_t free_bytes = 0;   ///< and by the driver,
  uint64_t total_bytes = 0;  ///< of this.
};
static_assert(std::is_trivially_copyable_v<Holding>);

/// What has to be done before a command can begin, in this order.
struct Preparation {
  bool unmap = false;             ///< Inference lets the trainers' weights go.
  bool discard_kv_cache = false;  ///< Inference gives its memory back, to make room.
  bool discard_weights = false;
  bool restore_optimizer = false;  ///< The trainers' memory comes back.
  bool restore_weights = false;
  uint64_t train_to = 0;  ///< Trainers that have taken fewer steps catch up; 0: none has.
  bool map = false;       ///< Inference maps the trainers' weights.

  constexpr bool operator==(const Preparation&) const = default;
};

/// Whether inference still holds, on every rank, what the trainers hold now: nothing has been
/// trained since the last commit, and no weights have gone since. Pure; the same on every rank.
[[nodiscard]] bool serves_what_trainers_hold(std::span<const Holding> ranks);

/// What a command finds missing when the ranks hold what they hold. An update needs all of the
/// trainers' memory and their weights mapped, a hand-over and a transfer their weights, resident
/// and mapped; an offload needs nobody to have them mapped, for what is mapped does not become
/// free; what failed midway goes on from there, unless it must return first; a resume needs
/// inference to have given its memory back. Pure; the same on every rank.
[[nodiscard]] Preparation preparation_for(Command command, std::span<const Holding> ranks);

/// Whether every GPU has room for all that its trainers have away, whatever inference holds there.
/// `gpus` by rank (DeviceMap::physical). Pure; the same on every rank.
[[nodiscard]] bool has_room_for_trainers(std::span<const Holding> ranks,
                                         std::span<const uint32_t> gpus);

/// What each trainer gives back of its optimizer's memory, in bytes by rank, before inference has
/// room for all of its own and may generate: a part of the GPU is free then for what its engine
/// allocates. All of it where that is not enough. `gpus` as above. Pure; the same on every
/// rank.
[[nodiscard]] std::vector<uint64_t> bytes_to_make_room(std::span<const Holding> ranks,
                                                       std::span<const uint32_t> gpus);

/// What the trainers need to train on, and the update after that: their memory, or that of it, and
/// their weights mapped. Whatever inference holds stays, and trainers need not have come equally
/// far. Pure; the same on every rank.
[[nodiscard]] Preparation preparation_to_train(std::span<const Holding> ranks, TakenBack what);

/// The same before the trainers' memory goes while inference serves what they hold, and keeps its
/// weights. Pure; the same on every rank.
[[nodiscard]] Preparation preparation_while_serving(std::span<const Holding> ranks);

}  // namespace awex
