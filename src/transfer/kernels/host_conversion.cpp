#include "transfer/kernels/host_conversion.hpp"

#include <algorithm>
#include <cstring>

#include "base/widest_vectors.hpp"

namespace awex {
namespace {

template <class Bits>
Bits load(const std::byte* from, uint64_t index) {
  Bits bits = 0;
  std::memcpy(&bits, from + index * sizeof(Bits), sizeof(Bits));
  return bits;
}

template <class From, class To>
void convert_run(const std::byte* from, std::byte* to, uint64_t count, float scale) {
  with_widest_vectors([=]() __attribute__((always_inline)) {
    for (uint64_t i = 0; i < count; ++i) {
      const auto bits = converted<From, To>(load<typename From::Bits>(from, i), scale);
      std::memcpy(to + i * sizeof(bits), &bits, sizeof(bits));
    }
  });
}

/// One run for each block that the elements lie in: its scale is looked up once.
template <class From>
void quantise(const ScaleGrid& grid, uint64_t row, uint64_t col, uint64_t count,
              const std::byte* from, std::byte* to) {
  for (uint64_t done = 0; done < count;) {
    const auto run = scale_run(grid, row, col + done);
    const uint64_t elements = std::min<uint64_t>(run.elements, count - done);
    convert_run<From, F8E4M3Element>(from + done * sizeof(typename From::Bits), to + done, elements,
                                     *run.scale);
    done += elements;
  }
}

}  // namespace

void convert_elements(const Conversion& conversion, uint64_t row, uint64_t col, uint64_t count,
                      const std::byte* from, std::byte* to) {
  with_elements(conversion, [&](auto source, auto target) {
    using From = decltype(source);
    using To = decltype(target);
    if constexpr (kHasScales<To>) {
      quantise<From>(conversion.grid, row, col, count, from, to);
    } else {
      convert_run<From, To>(from, to, count, 1);
    }
  });
}

float largest_magnitude(DType dtype, const std::byte* data, uint64_t rows, uint64_t cols,
                        uint64_t row_stride) {
  return with_source(dtype, [&](auto source) {
    using Element = decltype(source);
    using Bits = typename Element::Bits;
    const Bits largest = with_widest_vectors([=]() __attribute__((always_inline)) {
      Bits most = 0;
      for (uint64_t row = 0; row < rows; ++row) {
        const auto* first = data + row * row_stride * sizeof(Bits);
        for (uint64_t col = 0; col < cols; ++col) {
          most = std::max(most, magnitude_bits<Element>(load<Bits>(first, col)));
        }
      }
      return most;
    });
    return Element::value(largest);
  });
}

}  // namespace awex
