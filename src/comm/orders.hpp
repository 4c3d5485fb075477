#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/failures.hpp"
#include "comm/host_watch.hpp"
#include "comm/mpi_world.hpp"
#include "comm/waits.hpp"

namespace awex {

/// What rank 0 of a resident job tells all others to do next. Orders are messages of their epoch:
/// one that a rank has not taken when the job fails is lost with the epoch.
class Orders {
 public:
  Orders(MpiWorld& world, Failures& failures, Waits& waits, HostWatch& hosts)
      : world_(world), failures_(failures), waits_(waits), hosts_(hosts) {}

  /// See Job.
  void give(std::span<const std::byte> order);
  [[nodiscard]] std::vector<std::byte> await();

 private:
  [[nodiscard]] uint64_t await_size();

  MpiWorld& world_;
  Failures& failures_;
  Waits& waits_;
  HostWatch& hosts_;
};

}  // namespace awex
