#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "comm/job.hpp"
#include "memory/device.hpp"
#include "memory/placed_memory.hpp"
#include "plan/exchanged_copies.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {

/// Device memory that is taken at most for bytes on their way between devices.
inline constexpr uint64_t kStagingBytes = 48ULL << 20;

/// How bytes travel between devices.
enum class ExchangeKind : uint8_t {
  kAuto,  ///< Between GPUs kPeer where every inference rank's reaches every other's, else kNccl.
          ///< Between host devices by MPI.
  kPeer,  ///< Written by the sender's kernel, or threads, into the receiver's memory.
  kNccl,  ///< Between GPUs; between host devices as kAuto.
};

/// Carries out the copies between the inference ranks of a job. Trainer ranks have none: an
/// inference rank sends for the trainer on its GPU, whose memory it has mapped. (NCCL spans GPUs,
/// not ranks: two ranks of one GPU cannot join a communicator.)
///
/// What is ever to be copied is told with `prepare`, and can then be done every version; again when
/// addresses have changed. All inference ranks must call the same; each rank's memory must be
/// backed while it copies or compares. Calls throw what the job's poll throws, and Error(kDeadline)
/// that names the peers who are late. After a failure streams may wait for peers: `abort`, then
/// `rebuild` or destroy.
class RemoteCopies {
 public:
  RemoteCopies() = default;
  RemoteCopies(const RemoteCopies&) = delete;
  RemoteCopies& operator=(const RemoteCopies&) = delete;
  RemoteCopies(RemoteCopies&&) = delete;
  RemoteCopies& operator=(RemoteCopies&&) = delete;
  virtual ~RemoteCopies() = default;

  /// `trainer_weights` is the memory of the trainer on this device, `own_weights` this rank's.
  /// Before anything below, and again, with the same copies, when one of them lies elsewhere; then
  /// no copy may be in flight. Not collective. Throws what cannot be cut (strided_copies.hpp).
  virtual void prepare(const ExchangedCopies& copies, const PlacedMemory& trainer_weights,
                       const PlacedMemory& own_weights) = 0;
  /// Makes the connections to all peers, so that none is made later.
  virtual void connect() = 0;

  /// Brings every byte here. Queued on the kernels' streams beside the main one, so to be between
  /// Kernels::fork and join; what waits for other ranks may do so before it returns.
  virtual void copy() = 0;
  /// Brings every byte once more and compares it with what is here. As `copy`.
  virtual void compare() = 0;
  /// Waits until all work on the main stream is done (join the others before), watching the peers.
  virtual void wait() = 0;
  /// After `compare` and `wait`: where in this rank's region a byte differs, if one does.
  [[nodiscard]] virtual std::optional<uint64_t> difference() const = 0;

  /// Ends what is under way, whatever it waits for, and returns when no stream works for it any
  /// more: bytes that did not come are missing. Speaks with nobody, so that it can follow any
  /// failure; does nothing more when it is called again. Throws Error(kDeadline) and device errors.
  /// Copies can then only be rebuilt.
  virtual void abort(const Deadline& deadline) = 0;
  /// Makes ready what was aborted; copies and comparisons then begin anew, with what was prepared.
  /// All inference ranks, each after its `abort`; whether or not work of its own was under way.
  virtual void rebuild() = 0;

  /// Device memory held.
  [[nodiscard]] virtual uint64_t staging_bytes() const = 0;
};

/// The remote copies of this job's backend; null on trainer ranks. Collective over all ranks
/// (trainers take part in making it). `job` must know its peers; all arguments must outlive the
/// result. `needed` says whether any bytes go between devices: without, nothing is taken and nobody
/// connected. `share_gpu` says that several inference ranks may be on one GPU, which NCCL otherwise
/// refuses. Throws an agreed request error for kPeer where a GPU cannot be reached.
[[nodiscard]] std::unique_ptr<RemoteCopies> make_remote_copies(Job& job, Device& device,
                                                               Kernels& kernels, ExchangeKind kind,
                                                               bool needed, bool share_gpu);

}  // namespace awex
