#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/wait.hpp"
#include "memory/device.hpp"
#include "transfer/kernels/conversion.hpp"

namespace awex {

/// Copies `rows` rows of `row_bytes` bytes from `from` to `to`; rows are `from_stride` and
/// `to_stride` bytes apart. Any alignment; rows of neither side overlap. Addresses are of the
/// device. With a conversion, row_bytes are a row's bytes in the target's dtype, and the strides
/// count bytes of each side in its own.
struct StridedCopy {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  uint64_t rows = 0;
  uint64_t row_bytes = 0;
  uint64_t from_stride = 0;
  uint64_t to_stride = 0;
  std::optional<Conversion> conversion = std::nullopt;

  /// Bytes that are written.
  [[nodiscard]] uint64_t bytes() const { return rows * row_bytes; }
};

/// The first byte in which a copy's target differs from what the copy would write.
struct Difference {
  uint64_t copy = 0;  ///< Index in the batch.
  uint64_t row = 0;
  uint64_t byte_in_row = 0;  ///< Of the target.
};

/// A box of a canonical tensor in device memory, to be summed by the formula of model/digest.hpp.
/// With a conversion the sum is of the converted bits.
struct DigestView {
  const std::byte* data = nullptr;  ///< First element of the box.
  uint64_t rows = 0;
  uint64_t cols = 0;            ///< Elements.
  uint64_t row_stride = 0;      ///< Elements between rows in memory.
  uint64_t first_index = 0;     ///< Canonical index of the first element.
  uint64_t canonical_cols = 0;  ///< Canonical index step from one row to the next.
  uint64_t key = 0;             ///< tensor_key of the tensor.
  uint32_t element_size = 0;    ///< 1, 2 or 4 bytes, as in memory; data is aligned to it.
  uint32_t sum = 0;             ///< Number of the batch's sum that this view adds to.
  std::optional<Conversion> conversion = std::nullopt;
};

/// A box of a matrix, the largest absolute values of whose blocks are searched; its grid tells
/// where they go. A block that is cut by the box's bounds counts with its elements inside.
struct AmaxView {
  const std::byte* data = nullptr;  ///< First element of the box, aligned to its dtype.
  DType dtype = DType::kBf16;       ///< BF16, F16 or F32.
  uint64_t rows = 0;
  uint64_t cols = 0;        ///< Elements.
  uint64_t row_stride = 0;  ///< Elements between rows in memory.
  ScaleGrid grid;
};

/// A batch of copies whose descriptors lie ready on the device. Addresses never change, so a batch
/// is prepared once and run every version. `copy` and `compare` read the same descriptors.
class CopyBatch {
 public:
  CopyBatch() = default;
  CopyBatch(const CopyBatch&) = delete;
  CopyBatch& operator=(const CopyBatch&) = delete;
  CopyBatch(CopyBatch&&) = delete;
  CopyBatch& operator=(CopyBatch&&) = delete;
  virtual ~CopyBatch() = default;

  /// Queues all copies. The sources and targets of a batch do not overlap.
  virtual void copy() = 0;
  /// Queues a comparison of both sides; `difference` tells what it found.
  virtual void compare() = 0;
  /// After `compare` and Kernels::wait: the first difference in batch, row, byte order.
  [[nodiscard]] virtual std::optional<Difference> difference() const = 0;
};

/// A batch of digest views, each of which adds to one of the batch's sums.
class DigestBatch {
 public:
  DigestBatch() = default;
  DigestBatch(const DigestBatch&) = delete;
  DigestBatch& operator=(const DigestBatch&) = delete;
  DigestBatch(DigestBatch&&) = delete;
  DigestBatch& operator=(DigestBatch&&) = delete;
  virtual ~DigestBatch() = default;

  /// Queues the summing of all views, from zero.
  virtual void run() = 0;
  /// After `run` and Kernels::wait: all sums, by number.
  [[nodiscard]] virtual std::span<const uint64_t> sums() const = 0;
};

/// A batch of views whose blocks get scales, in two steps: a block that several ranks hold parts of
/// needs the largest of their values in between. Those are fp32 >= 0 or NaN, to be compared as
/// unsigned integers, so that a NaN stays.
class ScaleBatch {
 public:
  ScaleBatch() = default;
  ScaleBatch(const ScaleBatch&) = delete;
  ScaleBatch& operator=(const ScaleBatch&) = delete;
  ScaleBatch(ScaleBatch&&) = delete;
  ScaleBatch& operator=(ScaleBatch&&) = delete;
  virtual ~ScaleBatch() = default;

  /// Queues the search: every block that a view touches gets its largest absolute value in place of
  /// its scale.
  virtual void find_amax() = 0;
  /// Queues what turns these values into scales, in place: block_scale of model/convert.hpp.
  virtual void finish() = 0;
};

/// Queues of a device's work, each in order, that go on side by side: streams on cuda. What moves
/// between devices has its own, so that links are busy while the device copies for itself.
enum class Stream : uint8_t { kMain, kSend, kReceive };
inline constexpr size_t kStreams = 3;

/// The transfer's work on memory that a device reaches. Made by make_kernels; must outlive its
/// batches and be destroyed before its device. On host all work is done when a call returns.
class Kernels {
 public:
  Kernels() = default;
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;
  Kernels(Kernels&&) = delete;
  Kernels& operator=(Kernels&&) = delete;
  virtual ~Kernels() = default;

  /// Its work goes to `stream`; all other batches' to the main one.
  [[nodiscard]] virtual std::unique_ptr<CopyBatch> prepare_copies_on(
      Stream stream, std::span<const StridedCopy> copies) = 0;
  [[nodiscard]] std::unique_ptr<CopyBatch> prepare_copies(std::span<const StridedCopy> copies) {
    return prepare_copies_on(Stream::kMain, copies);
  }
  [[nodiscard]] virtual std::unique_ptr<DigestBatch> prepare_digests(
      std::span<const DigestView> views, uint32_t sum_count) = 0;
  /// A batch whose `run` first makes all copies, then sums all views, as their bytes are then: read
  /// back from memory, wherever a view lies. Where it can, a device does both at once, and digests
  /// what was just written while that is still in its cache. Copies as in CopyBatch.
  [[nodiscard]] virtual std::unique_ptr<DigestBatch> prepare_proven_copies(
      std::span<const StridedCopy> copies, std::span<const DigestView> views,
      uint32_t sum_count) = 0;
  /// No two views of a batch touch the same scale.
  [[nodiscard]] virtual std::unique_ptr<ScaleBatch> prepare_scales(
      std::span<const AmaxView> views) = 0;

  /// A stream's native handle (cudaStream_t) for an exchange; null on host.
  [[nodiscard]] virtual void* stream(Stream stream) const = 0;
  /// Later work on the other streams begins after what is queued on the main one.
  virtual void fork() = 0;
  /// Later work on the main stream begins after what is queued on all others.
  virtual void join() = 0;

  /// Returns when the main stream's work is done. Polls; throws Error(kDeadline) naming `what`,
  /// what the monitor throws, and device errors.
  virtual void wait(const std::string& what, const Deadline& deadline, WaitMonitor& monitor) = 0;
};

/// Kernels for a device, on its backend; `host_threads` work on the host backend.
[[nodiscard]] std::unique_ptr<Kernels> make_kernels(Device& device, size_t host_threads);

}  // namespace awex
