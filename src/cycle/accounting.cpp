#include "cycle/accounting.hpp"

#include <algorithm>
#include <limits>

#include "memory/region.hpp"

namespace awex {

MemoryAccount::MemoryAccount(BackendKind backend, const std::vector<Peer>& peers,
                             const DeviceMap& devices)
    : backend_(backend), peers_(peers), devices_(devices) {}

std::optional<Leak> MemoryAccount::add(const std::vector<MemorySample>& samples) {
  if (baseline_.empty()) baseline_ = samples;
  last_ = samples;
  note_peaks(samples);
  const auto excess = unexplained(samples);
  const auto worst = std::max_element(excess.begin(), excess.end());
  worst_ = std::max(worst_, *worst);
  if (*worst <= leak_tolerance(backend_)) return std::nullopt;
  const auto gpu = static_cast<uint32_t>(worst - excess.begin());
  const auto rank = std::find(devices_.physical.begin(), devices_.physical.end(), gpu);
  return Leak{gpu, static_cast<int>(rank - devices_.physical.begin()), *worst};
}

std::optional<int64_t> MemoryAccount::leaked_bytes(int rank) const {
  if (last_.empty() || baseline_.empty()) return std::nullopt;
  const auto at = static_cast<size_t>(rank);
  if (backend_ == BackendKind::kHost) return gone_bytes(at, last_[at]);
  return unexplained(last_)[devices_.physical[at]];
}

void MemoryAccount::others_were_at_work() {
  if (backend_ == BackendKind::kCuda) baseline_.clear();
}

int64_t MemoryAccount::booked_bytes(const MemorySample& sample) const {
  const uint64_t host = sample.host[0] + sample.host[1] + sample.host[2];
  const uint64_t tables = backend_ == BackendKind::kCuda ? page_table_bytes(host) : 0;
  return static_cast<int64_t>(sample.all_held() + tables);
}

/// By what a rank sees: memory gone since the baseline, less what its own books account for.
int64_t MemoryAccount::gone_bytes(size_t rank, const MemorySample& sample) const {
  const auto taken =
      static_cast<int64_t>(baseline_[rank].free_bytes) - static_cast<int64_t>(sample.free_bytes);
  return taken - (booked_bytes(sample) - booked_bytes(baseline_[rank]));
}

/// By GPU: memory gone since the baseline, less what the books account for.
std::vector<int64_t> MemoryAccount::unexplained(const std::vector<MemorySample>& samples) const {
  const auto gpus = static_cast<size_t>(devices_.gpus);
  constexpr int64_t kUnseen = std::numeric_limits<int64_t>::min();
  std::vector<int64_t> gone(gpus, backend_ == BackendKind::kCuda ? kUnseen : 0);
  std::vector<int64_t> booked(gpus, 0);
  for (size_t rank = 0; rank < samples.size(); ++rank) {
    const uint32_t gpu = devices_.physical[rank];
    const auto taken = static_cast<int64_t>(baseline_[rank].free_bytes) -
                       static_cast<int64_t>(samples[rank].free_bytes);
    switch (backend_) {
      case BackendKind::kCuda:  // every rank sees the whole device's free memory
        gone[gpu] = std::max(gone[gpu], taken);
        break;
      case BackendKind::kHost:  // every rank sees its own pages alone
        gone[gpu] += taken;
        break;
    }
    booked[gpu] += booked_bytes(samples[rank]) - booked_bytes(baseline_[rank]);
  }
  for (size_t gpu = 0; gpu < gpus; ++gpu) gone[gpu] -= booked[gpu];
  return gone;
}

void MemoryAccount::note_peaks(const std::vector<MemorySample>& samples) {
  std::array<std::array<uint64_t, kTags>, 2> now{};
  for (size_t rank = 0; rank < samples.size(); ++rank) {
    device_peak_ = std::max(device_peak_, samples[rank].device_peak);
    auto& role = now.at(static_cast<size_t>(peers_[rank].role));
    for (size_t tag = 0; tag < kTags; ++tag) role.at(tag) += samples[rank].held.at(tag);
  }
  for (size_t role = 0; role < now.size(); ++role) {
    for (size_t tag = 0; tag < kTags; ++tag) {
      auto& peak = peak_by_role_.at(role).at(tag);
      peak = std::max(peak, now.at(role).at(tag));
    }
  }
}

MemoryReport MemoryAccount::report() const {
  MemoryReport report;
  if (last_.empty()) return report;
  report.device_peak_bytes = device_peak_;
  report.leaked_bytes = worst_;
  report.leak_tolerance_bytes = leak_tolerance(backend_);
  for (const Role role : {Role::kTrainer, Role::kInference}) {
    for (const Tag tag : {Tag::kWeights, Tag::kOptimizer, Tag::kKvCache}) {
      MemoryByTag entry{role_name(role), tag_name(tag),
                        peak_by_role_.at(static_cast<size_t>(role)).at(static_cast<size_t>(tag)),
                        0};
      for (size_t rank = 0; rank < last_.size(); ++rank) {
        if (peers_[rank].role != role) continue;
        entry.host_pinned_bytes += last_[rank].host.at(static_cast<size_t>(tag));
      }
      report.host_pinned_bytes += entry.host_pinned_bytes;
      if (entry.device_peak_bytes + entry.host_pinned_bytes > 0) {
        report.by_role_and_tag.push_back(entry);
      }
    }
  }
  return report;
}

}  // namespace awex
