#pragma once

#include <cstdint>
#include <vector>

#include "transfer/plan.hpp"

namespace awex {

/// Where parts begin in a packed message: a multiple of this many bytes, so that packing and
/// unpacking copy in wide words.
inline constexpr uint64_t kPackAlignment = 16;

/// A piece, or some of its rows or columns, and where it lies in its packed message.
struct PackedPart {
  Piece piece;
  uint64_t packed_offset = 0;
};

/// What one inference rank sends to, or receives from, another in one round.
struct PackedMessage {
  uint32_t peer = 0;  ///< Inference role rank.
  std::vector<PackedPart> parts;
  uint64_t bytes = 0;  ///< At most the slot size of make_rounds.
};

/// One step of the remote exchange as one inference rank sees it.
struct Round {
  std::vector<PackedMessage> sends;
  std::vector<PackedMessage> receives;
};

/// Cuts the remote pieces that inference rank `me` sends (for the trainer on its device) and
/// receives into rounds in which no message exceeds `slot_bytes` (a multiple of kPackAlignment).
/// Pieces larger than a slot are split. Pure; sender and receiver of a pair get the same messages
/// in the same rounds because both evaluate this on the same plan.
[[nodiscard]] std::vector<Round> make_rounds(const Plan& plan, const Placement& placement,
                                             uint32_t me, uint64_t slot_bytes);

}  // namespace awex
