#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "memory/cuda_ranges.hpp"
#include "memory/lent_memory.hpp"

namespace awex {

/// The block of this process's device memory that `address` lies in: what cudaMalloc gave, or what
/// one handle of virtual memory management stands for. Throws a request error, with the remedy, for
/// memory that cannot be exported.
[[nodiscard]] Lending lend_cuda_memory(const std::byte* address);

/// A block of another process's, on the device of `source`, which is current. Throws
/// Error(kRuntime).
[[nodiscard]] std::unique_ptr<OpenedBlock> open_cuda_block(const CudaMemorySource& source,
                                                           const std::string& name,
                                                           const LentBlock& block,
                                                           const UniqueFd& fd);

}  // namespace awex
