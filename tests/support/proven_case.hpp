#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "model/digest.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex::test {

/// Random copies from one buffer into another, and views of both, with what must become of them.
/// Targets are matrices of elements whose parts, bands of rows by runs of columns, are copied one
/// by one and in any order from places of their own; some parts are copied by nobody. Views are of
/// whole matrices, of boxes in them, and of what is copied.
class ProvenCase {
 public:
  static constexpr uint32_t kSums = 23;

  /// Matrices have up to `most_bytes` bytes, but for gaps.
  ProvenCase(uint32_t seed, int matrices, uint64_t most_bytes) : random_(seed) {
    for (int i = 0; i < matrices; ++i) add_matrix(1 + any_below(most_bytes));
    std::shuffle(copies_.begin(), copies_.end(), random_);
    std::shuffle(views_.begin(), views_.end(), random_);
  }

  [[nodiscard]] uint64_t from_bytes() const { return from_bytes_; }
  [[nodiscard]] uint64_t to_bytes() const { return to_bytes_; }

  [[nodiscard]] std::vector<StridedCopy> copies(const std::byte* from, std::byte* to) const {
    std::vector<StridedCopy> copies;
    for (const auto& c : copies_) {
      copies.push_back({from + c.from, to + c.to, c.rows, c.row_bytes, c.from_stride, c.to_stride});
    }
    return copies;
  }

  [[nodiscard]] std::vector<DigestView> views(const std::byte* from, const std::byte* to) const {
    std::vector<DigestView> views;
    for (const auto& place : views_) {
      views.push_back(place.view);
      views.back().data = (place.is_of_source ? from : to) + place.offset;
    }
    return views;
  }

  /// The copies, byte by byte.
  void copy(const std::vector<std::byte>& from, std::vector<std::byte>& to) const {
    for (const auto& c : copies_) {
      for (uint64_t row = 0; row < c.rows; ++row) {
        for (uint64_t i = 0; i < c.row_bytes; ++i) {
          to[c.to + row * c.to_stride + i] = from[c.from + row * c.from_stride + i];
        }
      }
    }
  }

  /// All sums, element by element, of the two buffers as they are.
  [[nodiscard]] std::vector<uint64_t> sums(const std::vector<std::byte>& from,
                                           const std::vector<std::byte>& to) const {
    std::vector<uint64_t> sums(kSums, 0);
    for (const auto& [view, offset, is_of_source] : views_) {
      const std::byte* data = (is_of_source ? from : to).data() + offset;
      for (uint64_t row = 0; row < view.rows; ++row) {
        for (uint64_t col = 0; col < view.cols; ++col) {
          uint64_t bits = 0;
          for (uint64_t byte = 0; byte < view.element_size; ++byte) {
            const auto at = (row * view.row_stride + col) * view.element_size + byte;
            bits |= std::to_integer<uint64_t>(data[at]) << (8 * byte);
          }
          const uint64_t index = view.first_index + row * view.canonical_cols + col;
          sums[view.sum] += digest_term(view.key, index, bits);
        }
      }
    }
    return sums;
  }

 private:
  struct Copy {
    uint64_t rows, row_bytes, from, to, from_stride, to_stride;
  };
  struct ViewPlace {
    DigestView view;  ///< But for its data.
    uint64_t offset;
    bool is_of_source;
  };

  uint64_t any_below(uint64_t end) { return random_() % end; }
  bool one_in(uint64_t count) { return any_below(count) == 0; }

  /// Bounds of parts of [0, count).
  std::vector<uint64_t> cuts(uint64_t count, uint64_t most_parts, uint64_t step) {
    std::vector<uint64_t> bounds{0, count};
    for (uint64_t i = any_below(most_parts); i > 0; --i) {
      bounds.push_back(any_below(count + 1) / step * step);
    }
    std::sort(bounds.begin(), bounds.end());
    return bounds;
  }

  void add_matrix(uint64_t bytes) {
    const uint32_t size = 1U << any_below(3);
    const uint64_t step = one_in(2) ? 8 : 1;  // whole groups of elements, or any number
    const uint64_t cols = 1 + any_below(one_in(3) ? bytes : 300);
    const uint64_t whole_cols = (cols + step - 1) / step * step;
    const uint64_t rows = 1 + bytes / size / whole_cols;
    const uint64_t stride = whole_cols + (one_in(2) ? 0 : any_below(5) * step);
    const uint64_t offset = (to_bytes_ + 31) / 16 * 16 + any_below(3) * size * step;
    to_bytes_ = offset + rows * stride * size;
    const auto row_cuts = cuts(rows, 3, 1);
    const auto col_cuts = cuts(whole_cols, 4, step);
    for (size_t i = 0; i + 1 < row_cuts.size(); ++i) {
      for (size_t j = 0; j + 1 < col_cuts.size(); ++j) {
        if (one_in(8)) continue;
        add_part({row_cuts[i + 1] - row_cuts[i], (col_cuts[j + 1] - col_cuts[j]) * size, 0,
                  offset + (row_cuts[i] * stride + col_cuts[j]) * size, 0, stride * size},
                 size, step);
      }
    }
    add_view(rows, whole_cols, stride, size, step, offset, false);
    const uint64_t row = any_below(rows);
    const uint64_t col = any_below(whole_cols) / step * step;
    add_view(1 + any_below(rows - row), (1 + any_below(whole_cols - col) + step - 1) / step * step,
             stride, size, step, offset + (row * stride + col) * size, false);
  }

  void add_part(Copy copy, uint32_t size, uint64_t step) {
    const uint64_t cols = copy.row_bytes / size;
    const uint64_t stride = cols + (one_in(2) ? 0 : any_below(4) * step);
    copy.from = (from_bytes_ + 31) / 16 * 16 + any_below(3) * size * step;
    copy.from_stride = stride * size;
    from_bytes_ = copy.from + copy.rows * copy.from_stride;
    copies_.push_back(copy);
    if (one_in(2)) add_view(copy.rows, cols, stride, size, step, copy.from, true);
  }

  void add_view(uint64_t rows, uint64_t cols, uint64_t stride, uint32_t size, uint64_t step,
                uint64_t offset, bool is_of_source) {
    DigestView view;
    view.rows = rows;
    view.cols = cols;
    view.row_stride = stride;
    view.first_index = any_below(1000) * step;
    view.canonical_cols = cols + (one_in(2) ? 0 : any_below(9) * step);
    view.key = mix64(random_());
    view.element_size = size;
    view.sum = static_cast<uint32_t>(any_below(kSums));
    views_.push_back({view, offset, is_of_source});
  }

  std::mt19937 random_;
  uint64_t from_bytes_ = 0;
  uint64_t to_bytes_ = 0;
  std::vector<Copy> copies_;
  std::vector<ViewPlace> views_;
};

}  // namespace awex::test
