#pragma once

#include "base/thread_pool.hpp"
#include "base/wait.hpp"
#include "layout/layout.hpp"
#include "memory/device.hpp"
#include "memory/placed_memory.hpp"
#include "model/weights.hpp"

namespace awex {

/// The size of the window that load_region needs for a layout: 64 MiB, a longer row, or all.
[[nodiscard]] uint64_t load_window_bytes(const Catalogue& catalogue, const RankLayout& layout);

/// Fills resident weights memory with a rank's shards of the source's tensors, and the gaps
/// between them with zeros. Reads with `threads` threads, or as many more as slow storage needs,
/// into `window`, a host block of load_window_bytes at least, and copies from there. Where the
/// columns of a shard are a good part of a row, whole rows are read. Progress renews the deadline:
/// it bounds each copy and each time in which nothing is read. Returns the bytes read. Throws what
/// the source, the device and the monitor throw, and Error(kDeadline); copies from the window and
/// reads into it may then be in flight.
uint64_t load_region(const WeightSource& source, const RankLayout& layout,
                     const PlacedMemory& memory, HostBlock& window, CopyQueue& queue,
                     size_t threads, const Deadline& deadline, WaitMonitor& monitor);

}  // namespace awex
