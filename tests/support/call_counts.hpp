#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace awex::test {

/// How often functions that take something from the system, the driver or MPI were called, by their
/// names; no entry where it is never. Equal maps print as fmt ranges.
using CallCounts = std::map<std::string, uint64_t>;

/// Counts one call, from any thread. Called by the wrappers that the linker puts between our code
/// and the functions (awex_count_calls in tests/CMakeLists.txt); calls from within shared
/// libraries, such as MPI's own, do not pass there.
void note_call(const char* function);

/// All calls of this process so far.
[[nodiscard]] CallCounts calls_so_far();

/// What was called between two moments.
[[nodiscard]] CallCounts calls_between(const CallCounts& before, const CallCounts& after);

/// Both together.
[[nodiscard]] CallCounts sum_of(CallCounts a, const CallCounts& b);

/// `times` as many calls of each.
[[nodiscard]] CallCounts times(uint64_t times, CallCounts calls);

}  // namespace awex::test
