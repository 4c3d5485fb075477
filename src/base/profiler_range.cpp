#include "base/profiler_range.hpp"

#if AWEX_WITH_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

namespace awex {

#if AWEX_WITH_CUDA
ProfilerRange::ProfilerRange(const std::string& name) { nvtxRangePushA(name.c_str()); }
ProfilerRange::~ProfilerRange() { nvtxRangePop(); }
#else
ProfilerRange::ProfilerRange(const std::string& /*name*/) {}
ProfilerRange::~ProfilerRange() = default;
#endif

}  // namespace awex
