#pragma once

#include <functional>

namespace awex::test {

/// Refuses memory that a device takes, once, after `spared` that it gets, and calls `refused` then.
/// CMake's awex_refuse_memory puts this between the program and what gives it memory.
void refuse_memory(std::function<void()> refused = {}, int spared = 0);
/// Takes that back, where it has not come yet.
void allow_memory();

/// Whether memory was refused since the last `refuse_memory`.
[[nodiscard]] bool has_refused_memory();

/// For what stands before a function that takes memory: whether to refuse it this time.
[[nodiscard]] bool refuses_now();

}  // namespace awex::test
