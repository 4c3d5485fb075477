#pragma once

#include <string>

#include "comm/job.hpp"
#include "memory/lent_memory.hpp"
#include "transfer/share/fd_exchange.hpp"
#include "transfer/share/offered_range.hpp"

namespace awex {

/// Gives what an engine lends to `taker`, a rank on this host that calls take_lent: blocks,
/// segments and descriptors, which stay the giver's. `what` names it for errors. Not collective.
void hand_out_lent(Job& job, int taker, const LentMemory& lent, const std::string& what);

/// Takes what rank `giver` lends, as it has offered it.
[[nodiscard]] LentMemory take_lent(Job& job, int giver, const OfferedRange& offered,
                                   const std::string& what,
                                   FdTransport transport = FdTransport::kAuto);

}  // namespace awex
