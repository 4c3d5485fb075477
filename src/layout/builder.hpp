#pragma once

#include <cstdint>
#include <string>
#include <utility>

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

/// The same for a number of ranks: its hint says that there may be more of them.
void check_ranks_divide(const std::string& what, uint64_t ranks, const std::string& option,
                        uint32_t count);

/// What else a hint offers where there are too few ranks.
inline constexpr const char* kMoreRanks =
    "or take more GPUs, each with two ranks: one trainer, one inference";

/// The option that splits a tensor, for errors about it, and what a user may choose instead so that
/// it is split less: "dense_mlp=replicated", or empty.
struct Splitter {
  const char* option = "";
  const char* instead = "";
};

/// Writes a RankLayout parameter by parameter. A parameter is a stack of row blocks, each a box of
/// a canonical tensor as wide as the parameter, or padding; parameters follow each other at
/// kParameterAlignment. A parameter of quantised tensors is followed by its scales
/// ("<name>_scale_inv"), stacked as its own row blocks are.
class RankLayoutBuilder {
 public:
  /// `replica_group` is the rank's data-parallel index (trainer) or engine instance (inference).
  RankLayoutBuilder(const Catalogue& catalogue, uint32_t replica_group)
      : catalogue_(catalogue), replica_group_(replica_group) {}

  [[nodiscard]] const Catalogue& catalogue() const { return catalogue_; }
  [[nodiscard]] const TensorInfo& info(uint32_t tensor) const {
    return catalogue_.tensors()[tensor];
  }

  /// The data-parallel index for what follows: experts have other replicas than the rest.
  void set_replica_group(uint32_t replica_group) { replica_group_ = replica_group; }

  /// Begins a parameter; the row blocks that follow are its own.
  void begin(std::string name);
  /// Begins the next matrix of a parameter that stacks several (experts): blocks of elements that
  /// share a scale do not reach from one into the next.
  void begin_matrix() { matrix_row_ = layout_.parameters.back().rows; }
  /// Adds a box of a canonical tensor. `replicas` tells how many ranks of the same group hold this
  /// block, and which of them this rank is. A request error names `splitter` when the box of a
  /// quantised tensor cuts blocks that share a scale.
  void add(uint32_t tensor, Box box, Part replicas, Splitter splitter = {});
  /// Adds rows that hold no canonical element.
  void pad_rows(uint64_t rows);

  /// Whole parameters of common kinds.
  /// The whole tensor, on every rank of `group`.
  void replicated(std::string name, uint32_t tensor, Part group);
  /// Rows split over `group`.
  void split_rows(std::string name, uint32_t tensor, Part group);
  /// Columns split over `group`.
  void split_cols(std::string name, uint32_t tensor, Part group);
  /// Rows of a tensor padded to `padded_rows` (which must divide), split over `group`. `replicas`
  /// as for add().
  void split_padded_rows(std::string name, uint32_t tensor, uint64_t padded_rows, Part group,
                         Part replicas = {});

  /// Adds this rank's part of the rows, or columns, of a whole tensor to the open parameter.
  void add_rows(uint32_t tensor, Part group);
  void add_cols(uint32_t tensor, Part group);

  /// Ends the last parameter and returns all.
  [[nodiscard]] RankLayout finish();

 private:
  void end_parameter();
  void append_scales();
  void check_blocks(const TensorInfo& info, const Box& box, Splitter splitter) const;

  const Catalogue& catalogue_;
  uint32_t replica_group_;
  RankLayout layout_;
  bool open_ = false;
  uint64_t matrix_row_ = 0;  ///< Of the open parameter: where its last matrix begins.
  size_t first_shard_ = 0;   ///< Of the open parameter.
};

}  // namespace awex
