#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "base/fixed_text.hpp"
#include "base/unique_fd.hpp"
#include "comm/job.hpp"
#include "memory/device.hpp"
#include "transfer/share/fd_exchange.hpp"
#include "transfer/share/offered_range.hpp"

namespace awex {

/// What a rank tells all others of itself and, on a trainer, of its weights memory. Plain data of a
/// fixed size, the same on every rank, so that one MPI_Allgather swaps all handles.
struct HandleRecord {
  uint32_t protocol = 0;  ///< kHandleProtocol.
  int32_t rank = 0;
  int32_t partner = 0;  ///< Rank of the other role on the same device.
  Role role = Role::kTrainer;
  NodeIdentity node;
  std::array<uint8_t, 16> device_uuid{};
  uint64_t fingerprint = 0;  ///< Of model, both layouts and program version.
  uint64_t borrowed = 0;     ///< LentMemory::number of what this rank has open; 0 for nothing.
  HandleKind maps = HandleKind::kNone;  ///< What this rank can map.
  OfferedRange offered;
};
static_assert(std::is_trivially_copyable_v<HandleRecord>);

inline constexpr uint32_t kHandleProtocol = 5;

/// Checks all ranks' records, in rank order, against each other: one protocol and fingerprint for
/// all, partners that name each other, are of different roles and share host and device, offers
/// that make sense, and of a kind that the partner maps. Throws a request error that names both
/// sides and what differs. Pure.
void check_handles(std::span<const HandleRecord> records);

/// What a rank brings to a swap of handles. A trainer offers either its range, whose chunks are all
/// taken, or what its engine lends; inference says which lent memory it has open still.
struct HandlesHere {
  OwnedChunks* owned = nullptr;
  const LentMemory* lent = nullptr;
  uint64_t borrowed = 0;  ///< LentMemory::number, 0 for none.
};

/// Descriptors of a trainer's range, opened in this process; or what its engine lends.
struct ReceivedRange {
  uint64_t bytes = 0;
  uint64_t chunk_bytes = 0;
  std::vector<UniqueFd> fds{};
  bool is_lent = false;
  std::optional<LentMemory> lent{};  ///< Absent where what is open here is it still.
};

/// Swaps the handles of all trainers' weights: one all-gather of HandleRecords, then every
/// inference rank fetches the descriptors of the trainer on its own device. Collective over all
/// ranks.
///
/// `partner_rank` is the world rank of the trainer whose range an inference rank wants, and of the
/// inference rank that will fetch on a trainer; both are on `backend`. Returns an empty
/// ReceivedRange on trainers. When the records do not fit each other (check_handles) every rank
/// throws that request error, agreed on. Other failures happen on one rank, in the midst of its
/// work.
[[nodiscard]] ReceivedRange swap_handles(Job& job, BackendKind backend, const HandlesHere& here,
                                         int partner_rank, uint64_t fingerprint,
                                         FdTransport transport = FdTransport::kAuto);

}  // namespace awex
