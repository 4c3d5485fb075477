#pragma once

#include <string>

#include "base/error.hpp"
#include "comm/failures.hpp"
#include "comm/mpi_world.hpp"
#include "comm/waits.hpp"
#include "comm/wire_error.hpp"

namespace awex {

/// How the ranks come to one verdict, through rank 0, which knows who is missing.
class Agreement {
 public:
  Agreement(MpiWorld& world, Failures& failures, Waits& waits)
      : world_(world), failures_(failures), waits_(waits) {}

  /// Everyone brings its verdict; throws the first cause on every rank, agreed. Collective.
  void agree(const WireError& mine);
  /// Lets rank 0 know who comes to a collective call: MPI's own calls never say who is missing.
  void arrive(const std::string& what);

 private:
  [[nodiscard]] WireError decide(const WireError& mine);
  [[nodiscard]] WireError ask_for_outcome(const WireError& mine);

  MpiWorld& world_;
  Failures& failures_;
  Waits& waits_;
};

}  // namespace awex
