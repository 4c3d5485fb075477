#pragma once

#include <array>
#include <cstdint>

namespace awex {

/// What identifies a GPU (DeviceIdentity::uuid).
using GpuUuid = std::array<uint8_t, 16>;

}  // namespace awex
