#pragma once

#include "base/thread_pool.hpp"
#include "base/wait.hpp"
#include "layout/layout.hpp"
#include "memory/device.hpp"
#include "memory/region.hpp"
#include "model/weights.hpp"

namespace awex {

/// Fills a resident weights region with a rank's shards of the source's tensors, and the gaps
/// between them with zeros. Reads with `threads` into one pinned window of 64 MiB (or one row, if
/// longer) at a time. Throws what the source, the device and the monitor throw.
void load_region(const WeightSource& source, const RankLayout& layout, Region& region,
                 Device& device, CopyQueue& queue, ThreadPool& threads, const Deadline& deadline,
                 WaitMonitor& monitor);

}  // namespace awex
