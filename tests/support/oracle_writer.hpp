#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "support/oracle.hpp"

/// What the oracle's engines share: scissors, glue, and the model's whole tensors.
namespace awex::test {

/// `whole` / `parts`; throws DoesNotDivide with `what` in its text.
[[nodiscard]] uint64_t divide(uint64_t whole, uint64_t parts, const std::string& what);
inline void must_divide(uint64_t whole, uint64_t parts, const std::string& what) {
  (void)divide(whole, parts, what);
}
[[nodiscard]] uint64_t padded_to(uint64_t value, uint64_t step);

[[nodiscard]] IdMatrix rows_of(const IdMatrix& m, uint64_t first, uint64_t count);
[[nodiscard]] IdMatrix cols_of(const IdMatrix& m, uint64_t first, uint64_t count);
/// One above the other.
[[nodiscard]] IdMatrix stack(const std::vector<IdMatrix>& parts);
/// Adds rows of padding below, up to `rows`.
[[nodiscard]] IdMatrix pad_rows(IdMatrix m, uint64_t rows);

/// A place in a group that splits something: part `index` of `count`.
struct Slice {
  uint64_t count = 1;
  uint64_t index = 0;
};

[[nodiscard]] IdMatrix row_part(const IdMatrix& m, Slice slice, const std::string& what);
[[nodiscard]] IdMatrix col_part(const IdMatrix& m, Slice slice, const std::string& what);

/// The digits of `rank` for a grid whose first size varies fastest. Throws DoesNotDivide when the
/// rank is beyond the grid.
[[nodiscard]] std::vector<uint64_t> grid_place(uint64_t rank, const std::vector<uint64_t>& sizes);

/// Gives consecutive layers to stages of the given sizes, which must add up to `layers`.
[[nodiscard]] std::vector<std::vector<uint64_t>> deal_layers(const std::vector<uint64_t>& sizes,
                                                             uint64_t layers);

/// Finds the scales of what is quantised in square blocks, element by element.
class Scaler {
 public:
  /// `block` is 0 where nothing is quantised.
  Scaler(const Catalogue& catalogue, uint64_t block);

  /// Whether the matrix is one of quantised elements.
  [[nodiscard]] bool scales(const IdMatrix& m) const;
  /// The scale of an element of a quantised tensor.
  [[nodiscard]] Identity scale_of(Identity element) const;
  /// The scales of a matrix of such elements, block by block from its own first element on. Throws
  /// DoesNotDivide unless each block is just one of a tensor's own blocks.
  [[nodiscard]] IdMatrix scales_of(const IdMatrix& m) const;

 private:
  [[nodiscard]] Identity scale_at(const IdMatrix& m, uint64_t row, uint64_t col) const;
  void check_element(const IdMatrix& m, uint64_t row, uint64_t col, Identity scale) const;

  const Catalogue& catalogue_;
  uint64_t block_;
  std::vector<uint32_t> scales_;  ///< By tensor: that of its scales; 0 without.
};

/// Builds one rank's contents, parameter by parameter. Which parameters a layer has is seen from
/// the canonical tensors that the model has.
class Writer {
 public:
  explicit Writer(const Catalogue& catalogue, uint64_t block = 0)
      : catalogue_(catalogue), scaler_(catalogue, block) {}

 protected:
  [[nodiscard]] const Catalogue& catalogue() const { return catalogue_; }
  [[nodiscard]] const ModelConfig& config() const { return catalogue_.config(); }
  [[nodiscard]] bool has(const std::string& name) const {
    return catalogue_.find(name).has_value();
  }
  [[nodiscard]] IdMatrix canonical(const std::string& name) const;
  /// Puts a parameter, and its scales if it is quantised.
  void put(const std::string& name, IdMatrix m) { put_stack(name, {std::move(m)}); }
  /// The same of matrices that one parameter stacks, each with scales of its own.
  void put_stack(const std::string& name, const std::vector<IdMatrix>& matrices);
  /// gate's part above up's part.
  [[nodiscard]] IdMatrix gate_up(const std::string& mlp, Slice slice) const;
  [[nodiscard]] IdMatrix down(const std::string& mlp, Slice slice) const;
  /// How the shared experts' names begin in a layer's "mlp."; empty where there are none.
  [[nodiscard]] std::string shared_experts(const std::string& moe) const;
  /// Whether it is the gate matrix of a dense MLP, an expert or shared experts.
  [[nodiscard]] static bool is_gate_matrix(const std::string& name);
  /// The canonical tensor of the output projection of the vocabulary.
  [[nodiscard]] IdMatrix output_matrix() const;
  [[nodiscard]] RankContents take() { return std::move(out_); }

 private:
  void put_plain(const std::string& name, IdMatrix m);

  const Catalogue& catalogue_;
  Scaler scaler_;
  RankContents out_;
};

[[nodiscard]] RankContents megatron_contents(const EngineCase& engine, const Catalogue& catalogue,
                                             uint64_t rank, uint64_t ranks);
[[nodiscard]] RankContents fsdp_contents(const EngineCase& engine, const Catalogue& catalogue,
                                         uint64_t rank, uint64_t ranks);
/// "sglang" and "vllm".
[[nodiscard]] RankContents inference_contents(const EngineCase& engine, const Catalogue& catalogue,
                                              uint64_t rank, uint64_t ranks);

[[nodiscard]] std::vector<std::vector<uint64_t>> megatron_chunks(const EngineCase& engine,
                                                                 uint64_t layers);
[[nodiscard]] std::vector<std::vector<uint64_t>> inference_stages(const EngineCase& engine,
                                                                  uint64_t layers);

}  // namespace awex::test
