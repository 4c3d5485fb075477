#pragma once

#include <cstddef>
#include <memory>

#include "transfer/kernels/kernels.hpp"

namespace awex {

/// The transfer's work by `threads` host threads; everything is done when a call returns.
[[nodiscard]] std::unique_ptr<Kernels> make_host_kernels(Device& device, size_t threads);

}  // namespace awex
