#include "cycle/gpu_ledger.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "transfer/share/fd_exchange.hpp"

namespace awex {
namespace {

constexpr auto kWhat = "the memory ledger of the GPU";

UniqueFd make_page() {
  UniqueFd fd(::memfd_create("awex-ledger", MFD_CLOEXEC));
  if (!fd.valid()) throw errno_error("make the memory ledger of the GPU", "memfd_create", errno);
  if (::ftruncate(fd.get(), sizeof(LedgerWords)) != 0) {
    throw errno_error("size the memory ledger of the GPU", "ftruncate", errno);
  }
  return fd;
}

LedgerWords* map_page(int fd) {
  void* page = ::mmap(nullptr, sizeof(LedgerWords), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) throw errno_error("map the memory ledger of the GPU", "mmap", errno);
  return std::launder(static_cast<LedgerWords*>(page));
}

/// The first rank on this rank's GPU makes the page and hands it to the others there.
UniqueFd share_page(Job& job, const DeviceMap& devices) {
  const auto& gpus = devices.physical;
  const uint32_t mine = gpus[static_cast<size_t>(job.rank())];
  const auto owner = static_cast<int>(std::find(gpus.begin(), gpus.end(), mine) - gpus.begin());
  UniqueFd page;
  if (owner == job.rank()) page = make_page();
  const auto offered = job.all_gather_value(page.get(), kWhat);
  if (owner != job.rank()) {
    const int fd = offered[static_cast<size_t>(owner)];
    return std::move(take_fds(job, owner, {&fd, 1}, kWhat).front());
  }
  for (int rank = owner + 1; rank < job.size(); ++rank) {
    if (gpus[static_cast<size_t>(rank)] != mine) continue;
    const int fd = page.get();
    hand_out_fds(job, rank, {&fd, 1}, kWhat);
  }
  return page;
}

}  // namespace

GpuLedger::GpuLedger(Job& job, const DeviceMap& devices, uint64_t budget_bytes)
    : words_(map_page(share_page(job, devices).get())),
      ledger_(std::make_unique<MemoryLedger>(*words_, budget_bytes)) {}

GpuLedger::~GpuLedger() { ::munmap(words_, sizeof(LedgerWords)); }

}  // namespace awex
