#pragma once

namespace awex::test {

/// Refuses the next memory that a host device takes, once, or takes that back. The program must be
/// linked with --wrap=fallocate (CMake: awex_refuse_memory).
void refuse_memory(bool refuse);

/// Whether memory was refused since the last `refuse_memory(true)`.
[[nodiscard]] bool has_refused_memory();

}  // namespace awex::test
