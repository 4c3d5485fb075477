#pragma once

#include <memory>

#include "transfer/move/exchange.hpp"

namespace awex {

/// The exchange of the host backend, over MPI; null on trainer ranks. Takes kStagingBytes of the
/// device's memory, like the others, though it needs half; makes no communication. `job` must know
/// its peers; both must outlive the exchange.
[[nodiscard]] std::unique_ptr<Exchange> make_mpi_exchange(Job& job, Device& device);

}  // namespace awex
