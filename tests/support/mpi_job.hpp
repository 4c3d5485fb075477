#pragma once

#include "comm/job.hpp"

namespace awex::test {

/// The job of this test program, made by mpi_main.cpp; it knows its peers.
[[nodiscard]] Job& job();

/// What every rank can say of itself: the first half of the ranks is trainer, the rest inference,
/// and rank i of each role is on (pretended) device i. Collective.
[[nodiscard]] std::vector<Peer> gather_peers(Job& job);

}  // namespace awex::test
