// Whatever a safetensors file holds, it is refused as a wrong request or its tensors tile its data.
#include <cstdint>
#include <span>
#include <string_view>

#include "fuzz/untrusted.hpp"
#include "model/safetensors.hpp"

namespace {

using namespace awex;

void check(std::span<const std::byte> content, uint64_t file_bytes) {
  const auto length = safetensors_header_length(content, file_bytes, "f");
  if (length > content.size() - 8) return;  // only when file_bytes is more than what is here
  const std::string_view header(reinterpret_cast<const char*>(content.data()) + 8, length);
  uint64_t end = 8 + length;
  for (const auto& entry : parse_safetensors_header(header, file_bytes, "f")) {
    fuzz::require(entry.offset_bytes == end, "tensors follow each other");
    fuzz::require(entry.bytes <= file_bytes - end, "tensors end within the file");
    uint64_t bytes = entry.element_bytes();
    for (const auto extent : entry.shape) {
      fuzz::require(!__builtin_mul_overflow(bytes, extent, &bytes), "shapes do not overflow");
    }
    fuzz::require(bytes == entry.bytes, "shapes match bytes");
    end += entry.bytes;
  }
  fuzz::require(end == file_bytes, "tensors fill the file");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto content = std::as_bytes(std::span(data, size));
  fuzz::only_request_errors([&] { check(content, size); });
  // The same header in a vast file, so that offsets near the limits get past the first checks.
  fuzz::only_request_errors([&] { check(content, uint64_t{1} << 63); });
  return 0;
}
