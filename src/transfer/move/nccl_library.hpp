#pragma once

#include <optional>

namespace awex {

/// As NCCL writes versions: 22703 is 2.27.3.
struct NcclVersions {
  int built = 0;   ///< That this binary was built with.
  int loaded = 0;  ///< That it runs with.
};

/// Nothing in a binary without NCCL. Throws Error(kRuntime).
[[nodiscard]] std::optional<NcclVersions> nccl_versions();

}  // namespace awex
