#pragma once

#include <memory>

#include "transfer/exchange.hpp"

namespace awex {

/// The exchange of the host backend, over MPI; null on trainer ranks. Makes no communication. `job`
/// must know its peers and outlive the exchange.
[[nodiscard]] std::unique_ptr<Exchange> make_mpi_exchange(Job& job);

}  // namespace awex
