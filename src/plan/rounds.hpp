#pragma once

#include <cstdint>
#include <vector>

#include "plan/exchanged_copies.hpp"
#include "plan/plan_copies.hpp"

namespace awex {

/// Where parts begin in a packed message: a multiple of this many bytes, so that packing and
/// unpacking copy in wide words.
inline constexpr uint64_t kPackAlignment = 16;

/// Peers that a rank sends to, and receives from, in one round: enough to keep a link busy, few
/// enough for long messages in clusters of any size.
inline constexpr uint32_t kMostPeersAtOnce = 6;

/// A strided copy, or some of its rows or columns, and where it lies in its packed message, its
/// rows one after the other.
struct PackedPart {
  MergedCopy copy;
  uint64_t packed_offset = 0;
};

/// What one inference rank sends to, or receives from, another in one round.
struct PackedMessage {
  uint32_t peer = 0;    ///< Inference role rank.
  uint64_t offset = 0;  ///< Where it lies in a buffer, at both ends.
  std::vector<PackedPart> parts;
  uint64_t bytes = 0;  ///< A multiple of kPackAlignment.
};

/// One step of the remote exchange as one inference rank sees it.
struct Round {
  uint32_t turn = 0;  ///< Number of its messages among those of their pair of ranks.
  std::vector<PackedMessage> sends;
  std::vector<PackedMessage> receives;
};

/// Cuts what an inference rank sends and receives into rounds in which the messages of each
/// direction lie side by side in a buffer of `buffer_bytes`. Copies larger than a message are
/// split. Pure; sender and receiver of a pair get the same messages, at the same places.
///
/// Ranks meet their peers by distance, kMostPeersAtOnce distances at a time: all that a rank r
/// sends to r + 1 … r + 6 (mod ranks), then to the next six, and so on, message by message. A rank
/// leaves out rounds in which it has nothing to do. As every rank goes through the same order, the
/// earliest message that any rank waits for is one that its peer can handle: rounds never wait for
/// each other in a circle.
[[nodiscard]] std::vector<Round> make_rounds(const ExchangedCopies& copies, uint64_t buffer_bytes);

}  // namespace awex
