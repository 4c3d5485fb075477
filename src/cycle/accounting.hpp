#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "cycle/report.hpp"
#include "cycle/world.hpp"

namespace awex {

inline constexpr size_t kTags = 3;

/// One rank's memory at a quiet moment, by its books and by the driver.
struct MemorySample {
  std::array<uint64_t, kTags> held{};  ///< Device bytes by Tag.
  uint64_t other_held = 0;             ///< Staging.
  std::array<uint64_t, kTags> host{};  ///< Pinned host bytes by Tag.
  uint64_t free_bytes = 0;             ///< Device::memory().
  uint64_t device_peak = 0;            ///< The most that the GPU's ranks ever held together.

  [[nodiscard]] uint64_t all_held() const { return held[0] + held[1] + held[2] + other_held; }
};

/// More device memory gone than the books know of.
struct Leak {
  uint32_t gpu = 0;  ///< DeviceMap::physical number.
  int rank = 0;      ///< A rank on it.
  int64_t bytes = 0;
};

/// Device memory that may be gone unexplained without being called a leak: on cuda what the driver
/// takes for itself while a job runs, beyond the page tables of pinned host memory, which the books
/// know; on host, where the kernel counts pages, none.
[[nodiscard]] constexpr int64_t leak_tolerance(BackendKind backend) {
  return backend == BackendKind::kCuda ? 32LL << 20 : 0;
}

/// Device memory that the GPU's page tables of so much pinned host memory take: 8 bytes for 4 KiB.
/// Measured on H100.
[[nodiscard]] constexpr uint64_t page_table_bytes(uint64_t pinned_bytes) {
  return pinned_bytes / 512;
}

/// Compares, after every phase, what the devices' free memory says with what the books say, both
/// against a baseline, and keeps the peaks. Every rank feeds it all ranks' samples and so
/// reaches the same verdict.
class MemoryAccount {
 public:
  MemoryAccount(BackendKind backend, const std::vector<Peer>& peers, const DeviceMap& devices);

  /// Samples of all ranks by rank, taken while no rank works. The first call sets the baseline.
  /// Returns the worst GPU's excess if it is above leak_tolerance.
  std::optional<Leak> add(const std::vector<MemorySample>& samples);
  /// Processes that are not the job's have used the devices since the last sample, as engines do
  /// that attach: the next one sets the baseline anew where all share a device's free memory.
  void others_were_at_work();

  [[nodiscard]] MemoryReport report() const;
  /// Device memory that was gone at the last sample beyond what the books say: on host of this
  /// rank's process, on cuda of its GPU, whose processes the driver does not tell apart. Nothing
  /// before a sample.
  [[nodiscard]] std::optional<int64_t> leaked_bytes(int rank) const;

 private:
  [[nodiscard]] int64_t booked_bytes(const MemorySample& sample) const;
  [[nodiscard]] std::vector<int64_t> unexplained(const std::vector<MemorySample>& samples) const;
  [[nodiscard]] int64_t gone_bytes(size_t rank, const MemorySample& sample) const;
  void note_peaks(const std::vector<MemorySample>& samples);

  BackendKind backend_;
  const std::vector<Peer>& peers_;
  const DeviceMap& devices_;
  std::vector<MemorySample> baseline_;
  std::vector<MemorySample> last_;
  uint64_t device_peak_ = 0;
  std::array<std::array<uint64_t, kTags>, 2> peak_by_role_{};
  int64_t worst_ = 0;
};

}  // namespace awex
