#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "comm/agreement.hpp"
#include "comm/failures.hpp"
#include "comm/mpi_world.hpp"
#include "comm/waits.hpp"

namespace awex {

/// A collective call of MPI, as all ranks must make it. Plain data.
struct CollectiveCall {
  enum class Kind : uint32_t { kNone, kGather, kSum, kMax, kBarrier };

  uint64_t sequence = 0;  ///< Which call of its epoch, from 1; 0 for none.
  Kind kind = Kind::kNone;
  int32_t count = 0;  ///< Of bytes or numbers that each rank brings.

  friend bool operator==(const CollectiveCall&, const CollectiveCall&) = default;
};
static_assert(std::is_trivially_copyable_v<CollectiveCall>);

/// MPI's collective calls, begun when this rank has told that it comes, and waited for with a
/// deadline. `what` names them in errors; see Job. MPI cannot cancel such a call, so recovery ends
/// it: ranks that have not come to it yet join it.
class Collectives {
 public:
  Collectives(MpiWorld& world, Failures& failures, Waits& waits, Agreement& agreement)
      : world_(world), failures_(failures), waits_(waits), agreement_(agreement) {}

  [[nodiscard]] std::vector<std::byte> all_gather(std::span<const std::byte> send,
                                                  const std::string& what);
  /// `kind` is kSum or kMax.
  void all_reduce(CollectiveCall::Kind kind, std::span<uint64_t> values, const std::string& what);
  void barrier(const std::string& what);

  /// The last call of this epoch that this rank has begun. No rank begins another before all have
  /// begun this one.
  [[nodiscard]] const CollectiveCall& begun() const { return begun_; }
  /// In recovery: begins `last`, which another rank has begun, if this rank has not.
  void join(const CollectiveCall& last);
  /// In recovery: lets the call that this rank has begun make progress; whether it is done.
  [[nodiscard]] bool settle();
  /// The next call will be the first of an epoch.
  void begin_epoch() { begun_ = {}; }

 private:
  void begin(CollectiveCall::Kind kind, std::span<const std::byte> send, size_t count);
  void start();
  [[nodiscard]] bool is_done();

  MpiWorld& world_;
  Failures& failures_;
  Waits& waits_;
  Agreement& agreement_;
  CollectiveCall begun_;
  MPI_Request request_ = MPI_REQUEST_NULL;
  // MPI uses these until the call is done, whether somebody waits for it or not.
  std::vector<std::byte> from_;
  std::vector<std::byte> to_;
};

}  // namespace awex
