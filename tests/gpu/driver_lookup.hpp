#pragma once

#include <string_view>

namespace awex::test {

/// What a program gets where src/memory/cuda_driver looks a function of the driver up by name: for
/// whoever links driver_lookup.cpp to define, `real` or a function that stands before it. The
/// look-up is wrapped by the linker (--wrap=cudaGetDriverEntryPointByVersion).
void* divert_driver_function(std::string_view symbol, void* real);

}  // namespace awex::test
