#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "memory/lent_memory.hpp"

namespace awex {

/// The block of this process's memory that `address` lies in: a shared mapping of a file of which
/// the process has a descriptor. Throws a request error for memory that no other process can map.
[[nodiscard]] Lending lend_host_memory(const std::byte* address);

/// A block of another process's. Throws Error(kRuntime).
[[nodiscard]] std::unique_ptr<OpenedBlock> open_host_block(const std::string& name,
                                                           const LentBlock& block,
                                                           const UniqueFd& fd);

}  // namespace awex
