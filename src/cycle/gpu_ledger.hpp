#pragma once

#include <cstdint>
#include <memory>

#include "comm/job.hpp"
#include "cycle/world.hpp"
#include "memory/ledger.hpp"

namespace awex {

/// The ledger of this rank's GPU, whose words all ranks on it share: a page of memory that has no
/// name, so that nothing is left of it when they end.
class GpuLedger {
 public:
  /// `budget_bytes` is the same on all ranks of a GPU. The job must know its peers. Collective.
  GpuLedger(Job& job, const DeviceMap& devices, uint64_t budget_bytes);
  GpuLedger(const GpuLedger&) = delete;
  GpuLedger& operator=(const GpuLedger&) = delete;
  GpuLedger(GpuLedger&&) = delete;
  GpuLedger& operator=(GpuLedger&&) = delete;
  ~GpuLedger();

  [[nodiscard]] MemoryLedger& ledger() { return *ledger_; }

 private:
  LedgerWords* words_ = nullptr;
  std::unique_ptr<MemoryLedger> ledger_;
};

}  // namespace awex
