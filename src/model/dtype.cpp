#include "model/dtype.hpp"

#include <array>

namespace awex {
namespace {

constexpr std::array kAllDTypes{DType::kBf16, DType::kF16, DType::kF32, DType::kF8E4M3,
                                DType::kF8E5M2};

}  // namespace

uint64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      return 1;
    case DType::kBf16:
    case DType::kF16:
      return 2;
    case DType::kF32:
      return 4;
  }
  __builtin_unreachable();
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kF32:
      return "F32";
    case DType::kF8E4M3:
      return "F8_E4M3";
    case DType::kF8E5M2:
      return "F8_E5M2";
  }
  __builtin_unreachable();
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const auto dtype : kAllDTypes) {
    if (dtype_name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

}  // namespace awex
