#pragma once

#include <functional>

namespace awex::test {

/// Refuses memory that a host device takes, once, after `spared` that it gets, and calls `refused`
/// then. The program must be linked with --wrap=fallocate (CMake: awex_refuse_memory).
void refuse_memory(std::function<void()> refused = {}, int spared = 0);
/// Takes that back, where it has not come yet.
void allow_memory();

/// Whether memory was refused since the last `refuse_memory`.
[[nodiscard]] bool has_refused_memory();

}  // namespace awex::test
