#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "transfer/exchange.hpp"

namespace awex {

/// Leave for a peer to write its message of a turn.
struct Grant {
  uint32_t peer = 0;  ///< The sender.
  uint32_t turn = 0;
};

/// When a receiver grants each message that it gets.
struct Grants {
  std::vector<Grant> at_begin;
  std::vector<std::vector<Grant>> after_round;  ///< By round, once it is unpacked.
};

/// Flow control where senders write into a receiver's `buffers` buffers, of which messages of a
/// turn use buffer turn % buffers: every message is granted once, when what was at its place before
/// has been unpacked. Grants to one sender come in the order of turns, for each buffer. Pure.
///
/// Nobody waits in a circle: a message waits only for messages of the same receiver in earlier
/// rounds, and all ranks go through rounds in one order (transfer/rounds.hpp).
[[nodiscard]] Grants grants_of(std::span<const MessageRound> rounds, uint32_t buffers);

}  // namespace awex
