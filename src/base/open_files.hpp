#pragma once

namespace awex {

/// Lets this process have as many descriptors as it may (RLIMIT_NOFILE's hard limit): a rank has
/// one for every chunk and lent block of memory, and soft limits are low for the sake of select(2).
/// Where that fails the limit stays.
void raise_limit_of_open_files() noexcept;

}  // namespace awex
