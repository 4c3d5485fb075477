#pragma once

#include <algorithm>
#include <cstdint>

namespace awex {

/// A half-open range [begin, end) of indices.
struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;

  [[nodiscard]] constexpr uint64_t size() const { return end - begin; }
  [[nodiscard]] constexpr bool empty() const { return begin >= end; }
  constexpr bool operator==(const Range&) const = default;
};

[[nodiscard]] constexpr Range intersect(Range a, Range b) {
  const Range both{std::max(a.begin, b.begin), std::min(a.end, b.end)};
  return both.empty() ? Range{} : both;
}

/// A half-open box of a canonical tensor's index space: rows x cols. The only geometry there is.
struct Box {
  Range rows;
  Range cols;

  [[nodiscard]] constexpr uint64_t elements() const { return rows.size() * cols.size(); }
  [[nodiscard]] constexpr bool empty() const { return rows.empty() || cols.empty(); }
  constexpr bool operator==(const Box&) const = default;
};

[[nodiscard]] constexpr Box intersect(const Box& a, const Box& b) {
  const Box both{intersect(a.rows, b.rows), intersect(a.cols, b.cols)};
  return both.empty() ? Box{} : both;
}

}  // namespace awex
