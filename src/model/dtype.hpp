#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace awex {

/// Element types of weights. The values are part of the layout fingerprint.
enum class DType : uint8_t { kBf16, kF16, kF32, kF8E4M3, kF8E5M2 };

/// Bytes of one element: 1, 2 or 4.
[[nodiscard]] uint64_t element_bytes(DType dtype);

/// The safetensors name: "BF16", "F16", "F32", "F8_E4M3", "F8_E5M2".
[[nodiscard]] std::string_view dtype_name(DType dtype);

/// The dtype with a safetensors name, if we know it.
[[nodiscard]] std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace awex
