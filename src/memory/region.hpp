#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/wait.hpp"
#include "memory/blocks_ahead.hpp"
#include "memory/device.hpp"
#include "memory/ledger.hpp"
#include "memory/tag.hpp"

namespace awex {

/// What a monitor is told of host memory that is made for offloaded bytes.
[[nodiscard]] WorkProgress host_memory_progress(uint64_t done_bytes, uint64_t all_bytes);

enum class RegionState : uint8_t {
  kDiscarded,   ///< No bytes to bring back; no device memory either, unless giving it back failed.
  kResident,    ///< All bytes are in device memory.
  kOffloading,  ///< Some chunks are in host memory, the others in device memory.
  kOffloaded,   ///< All bytes are in host memory; holds no device memory.
  kResuming,    ///< As kOffloading, on the way back; some bytes are in both.
};

/// "discarded", "resident", "offloading", "offloaded" or "resuming".
[[nodiscard]] const char* state_name(RegionState state);

struct RegionMove {
  RegionState from;
  RegionState to;
};

/// Every legal move. The moves from a state to itself are the retry of a move that failed midway.
inline constexpr RegionMove kLegalMoves[] = {
    {RegionState::kDiscarded, RegionState::kDiscarded},
    {RegionState::kDiscarded, RegionState::kResident},
    {RegionState::kResident, RegionState::kDiscarded},
    {RegionState::kResident, RegionState::kOffloading},
    {RegionState::kOffloading, RegionState::kOffloading},
    {RegionState::kOffloading, RegionState::kOffloaded},
    {RegionState::kOffloading, RegionState::kResuming},
    {RegionState::kOffloaded, RegionState::kResuming},
    {RegionState::kResuming, RegionState::kResuming},
    {RegionState::kResuming, RegionState::kResident},
};

[[nodiscard]] constexpr bool is_legal_move(RegionState from, RegionState to) {
  for (const auto& move : kLegalMoves) {
    if (move.from == from && move.to == to) return true;
  }
  return false;
}

/// What a call on a region did.
struct RegionChange {
  bool changed = false;      ///< False: what was asked for was so already.
  uint64_t moved_bytes = 0;  ///< Copied between device and host.
};

/// Called in an offload for each chunk before its memory is given back: when its copy is done,
/// while the next chunk's runs; for the last chunk while its own runs. What reads the chunk must be
/// done when this returns.
using ChunkLeaving = std::function<void(uint64_t chunk)>;
/// Called in an offload for each chunk when its bytes are in host memory, before its device memory
/// is given back: others that have that mapped let it go. After a throw the chunk stays where it
/// was; a later call tells of it again, also where giving it back had failed.
using ChunkCopied = std::function<void(uint64_t chunk)>;
/// Of device memory: all that there is.
inline constexpr uint64_t kEverything = UINT64_MAX;
/// Called in a resume when a chunk's bytes are back, in the order of chunks, while copies of later
/// chunks run.
using ChunkArrived = std::function<void(uint64_t chunk)>;

/// One role's memory for one tag: device addresses that never change, whose bytes are in device
/// memory, in host memory, or on their way. Owns the addresses, the device memory and the host
/// memory; the latter is allocated at the first offload, one block a chunk, and kept for life.
///
/// Calls that move bytes are not collective and block until done; they throw what the device and
/// the monitor throw, and Error(kDeadline), with the tag in the error's context. A move that is not
/// legal is a run-time error that names both states. Not thread safe.
///
/// No failure loses bytes: every chunk's bytes are whole in device or in host memory at every
/// moment, and repeating the call, or resuming after a failed offload, goes on from there. After a
/// throw copies may still be in flight: go on with the same queue, and finish it before destroying
/// the region.
class Region {
 public:
  /// Reserves addresses for `bytes` (> 0) and takes no memory. `device` must outlive the region,
  /// and so must `ledger`, on which it books its device memory; without one that is not limited.
  /// `sharing` is of its host memory.
  Region(Device& device, std::string name, Tag tag, uint64_t bytes, MemoryLedger* ledger = nullptr,
         HostSharing sharing = HostSharing::kPrivate);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] Tag tag() const { return tag_; }
  [[nodiscard]] RegionState state() const { return state_; }
  [[nodiscard]] std::byte* data() const { return range_->data(); }
  [[nodiscard]] uint64_t bytes() const { return range_->bytes(); }
  [[nodiscard]] DeviceRange& range() { return *range_; }
  /// Device memory held now, by the books.
  [[nodiscard]] uint64_t held_bytes() const { return range_->held_bytes(); }
  /// Device memory that it books when all of it is there, less that.
  [[nodiscard]] uint64_t lacking_bytes() const;
  /// Host memory held now. May be asked from any thread.
  [[nodiscard]] uint64_t host_bytes() const { return host_bytes_.load(); }

  /// Discarded to resident, with undefined content. All or nothing, but for what it then fails to
  /// give back: that is logged, and stays for the next `take` or `discard`. Like `resume` it waits
  /// for room on the ledger, and takes as many chunks at once as there is room for.
  RegionChange take(const Deadline& deadline, WaitMonitor& monitor);
  /// Resident to discarded: the bytes are gone, also when giving their memory back fails; then it
  /// may be repeated. No device work on them may be in flight. Bytes that were offloaded cannot be
  /// discarded.
  RegionChange discard();
  /// Resident (or an offload that failed, or was of a part) to offloaded. Each chunk is released
  /// behind its copy, while the next chunk's copy runs. Tells the monitor of each chunk's host
  /// memory that it had to make. No other work on the region may be in flight. `leaving` is not
  /// called for chunks that an offload before this has copied. It ends early, and the region stays
  /// kOffloading, when it has given `enough_bytes` (> 0) of device memory back.
  RegionChange offload(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                       const ChunkLeaving& leaving = {}, uint64_t enough_bytes = kEverything,
                       const ChunkCopied& copied = {});
  /// Offloaded (or a failed offload or resume) to resident. From discarded it is `take`, and no
  /// chunk arrives.
  RegionChange resume(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                      const ChunkArrived& arrived = {});

  /// Resident: brings the bytes back that the last offload has left in host memory, in place of
  /// what is there. They are whole from an offload's end until the next begins; a run-time error
  /// where there are none.
  RegionChange bring_back(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                          const ChunkArrived& arrived = {});
  /// Resident: copies the bytes to host memory, as an offload does, and keeps them here.
  RegionChange back_up(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor);
  /// Whether `bring_back` has what it needs.
  [[nodiscard]] bool has_copy() const;

  /// Allocates the host memory that offloads need, as far as it is missing; between two chunks it
  /// looks whether to stop early. May run on another thread while the region is taken and used, but
  /// not while it is offloaded or resumed, nor while `backup` is called.
  void prepare_backup(const std::stop_token& stop = {});
  /// The host memory of a chunk, empty where there is none yet. Holds the chunk's bytes while they
  /// are in host memory.
  [[nodiscard]] std::span<const std::byte> backup(uint64_t chunk) const;
  /// A descriptor of a chunk's host memory, which must be there, and shared.
  [[nodiscard]] int backup_fd(uint64_t chunk) const;
  /// Whether host memory is where a chunk's bytes are surely whole.
  [[nodiscard]] bool is_in_host(uint64_t chunk) const { return chunks_.at(chunk).bytes_in_host; }

 private:
  struct Chunk {
    bool bytes_in_host = false;  ///< See `is_in_host`.
    bool has_copy = false;       ///< Host memory holds what an offload has copied.
    std::unique_ptr<HostBlock> host;
  };

  [[nodiscard]] Error illegal_move(RegionState to) const;
  void enter(RegionState to);
  void reserve(uint64_t chunk, const Deadline& deadline, WaitMonitor& monitor);
  [[nodiscard]] bool try_reserve(uint64_t chunk);
  void take_reserved(uint64_t first, uint64_t count);
  [[nodiscard]] uint64_t taken_chunks() const;
  void release_chunks(uint64_t first, uint64_t count);
  [[nodiscard]] std::vector<uint64_t> next_to_leave(uint64_t enough_bytes) const;
  [[nodiscard]] std::vector<uint64_t> missing_backups(std::span<const uint64_t> chunks) const;
  void keep_backup(uint64_t chunk, std::unique_ptr<HostBlock> host);
  [[nodiscard]] std::string describe_move(const char* move, uint64_t chunk) const;
  [[nodiscard]] std::byte* chunk_data(uint64_t chunk) const;

  Device& device_;
  MemoryLedger* ledger_;
  std::string name_;
  Tag tag_;
  HostSharing sharing_;
  RegionState state_ = RegionState::kDiscarded;
  std::unique_ptr<DeviceRange> range_;
  std::vector<Chunk> chunks_;
  std::atomic<uint64_t> host_bytes_{0};  ///< Of all chunks.
};

}  // namespace awex
