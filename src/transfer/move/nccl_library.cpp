#include "transfer/move/nccl_library.hpp"

#include "base/error.hpp"
#if AWEX_WITH_CUDA
#include <nccl.h>
#endif

namespace awex {

std::optional<NcclVersions> nccl_versions() {
#if AWEX_WITH_CUDA
  NcclVersions versions;
  versions.built = NCCL_VERSION_CODE;
  const auto result = ncclGetVersion(&versions.loaded);
  if (result == ncclSuccess) return versions;
  throw runtime_error(fmt::format("cannot ask NCCL for its version: ncclGetVersion: {} ({})",
                                  ncclGetErrorString(result), static_cast<int>(result)));
#else
  return std::nullopt;
#endif
}

}  // namespace awex
