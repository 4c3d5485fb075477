#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "layout/layout.hpp"

namespace awex {

/// A rank's place in the group that splits a dimension: part `index` of `count`.
struct Part {
  uint32_t count = 1;
  uint32_t index = 0;

  /// This part of [0, size), which must divide (check_divides).
  [[nodiscard]] Range of(uint64_t size) const {
    return {size / count * index, size / count * (index + 1)};
  }
};

/// Throws a request error "<what> = <value> does not divide by <option>=<count>".
void check_divides(const std::string& what, uint64_t value, const std::string& option,
                   uint32_t count);

/// Writes a RankLayout parameter by parameter. A parameter is a stack of row blocks, each a box of
/// a canonical tensor as wide as the parameter, or padding; parameters follow each other at
/// kParameterAlignment.
class RankLayoutBuilder {
 public:
  /// `replica_group` is the rank's data-parallel index (trainer) or engine instance (inference).
  RankLayoutBuilder(const Catalogue& catalogue, uint32_t replica_group)
      : catalogue_(catalogue), replica_group_(replica_group) {}

  [[nodiscard]] const Catalogue& catalogue() const { return catalogue_; }

  /// Begins a parameter; the row blocks that follow are its own.
  void begin(std::string name);
  /// Adds a box of a canonical tensor. `copies` tells how many ranks of the same group hold this
  /// block, and which of them this rank is.
  void add(std::string_view tensor, Box box, Part copies);
  /// Adds rows that hold no canonical element.
  void pad_rows(uint64_t rows);

  /// Whole parameters of common kinds.
  /// The whole tensor, on every rank of `group`.
  void replicated(std::string name, std::string_view tensor, Part group);
  /// Rows split over `group`.
  void split_rows(std::string name, std::string_view tensor, Part group);
  /// Columns split over `group`.
  void split_cols(std::string name, std::string_view tensor, Part group);
  /// Rows of a tensor padded to `padded_rows` (which must divide), split over `group`.
  void split_padded_rows(std::string name, std::string_view tensor, uint64_t padded_rows,
                         Part group);

  /// Adds this rank's part of the rows, or columns, of a whole tensor to the open parameter.
  void add_rows(std::string_view tensor, Part group);
  void add_cols(std::string_view tensor, Part group);

  /// Ends the last parameter and returns all.
  [[nodiscard]] RankLayout finish();

 private:
  void end_parameter();

  const Catalogue& catalogue_;
  uint32_t replica_group_;
  RankLayout layout_;
  bool open_ = false;
};

}  // namespace awex
