#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <vector>

#include "comm/agreement.hpp"
#include "comm/mpi_world.hpp"

namespace awex {

/// MPI's collective calls, started when this rank has told that it comes, and waited for with a
/// deadline. `what` names them in errors; see Job.
class Collectives {
 public:
  Collectives(MpiWorld& world, Agreement& agreement) : world_(world), agreement_(agreement) {}

  [[nodiscard]] std::vector<std::byte> all_gather(std::span<const std::byte> send,
                                                  const std::string& what);
  void all_reduce(std::span<uint64_t> values, MPI_Op operation, const std::string& what);
  void barrier(const std::string& what);

 private:
  MpiWorld& world_;
  Agreement& agreement_;
  std::list<std::vector<std::byte>> abandoned_;  ///< MPI may use these after a failed wait.
};

}  // namespace awex
