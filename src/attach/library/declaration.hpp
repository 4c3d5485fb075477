#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "layout/layout.hpp"
#include "memory/lent_memory.hpp"
#include "memory/mapping_device.hpp"
#include "memory/region.hpp"

namespace awex::attach {

/// A request error about a tensor that cannot be declared.
[[nodiscard]] Error cannot_declare(const Parameter& parameter, const std::string& why,
                                   const std::string& hint = {});

/// The tensors that an engine declares, by tag, and the blocks of its own memory that it lends for
/// those that lie there. Not thread safe.
class Declaration {
 public:
  using Tensors = std::array<std::vector<Parameter>, 3>;
  /// By address.
  using Blocks = std::map<uint64_t, LentBlock>;

  /// Tensors of weights that lie in memory of the engine's own have addresses for places.
  [[nodiscard]] const Tensors& tensors() const { return tensors_; }
  [[nodiscard]] const std::vector<Parameter>& weights() const;

  /// The next declaration begins a new list of all tags.
  void begin_anew() { next_ = Next::kBeginsAll; }
  /// The same of weights alone.
  void begin_weights_anew() { next_ = Next::kBeginsWeights; }
  /// What has been declared stands, also where nothing has been since a list was to begin.
  void keep() { next_ = Next::kAdds; }

  /// A tensor in a tag's memory of `bytes`. Throws request errors.
  void add(Tag tag, const Parameter& parameter, uint64_t bytes);
  /// A tensor of weights in this process's own memory; `device` finds the blocks that are to be
  /// lent, null where there is nobody to lend to. Throws request errors, for memory that cannot be
  /// lent, too.
  void add_own(const Parameter& parameter, MappingDevice* device);

  /// Finds the blocks of all weights again. Throws request errors as add_own does.
  void find_blocks(MappingDevice& device);
  /// What is lent.
  [[nodiscard]] const Blocks& blocks() const { return blocks_; }

 private:
  enum class Next : uint8_t { kAdds, kBeginsAll, kBeginsWeights };

  void begin_list();
  void put(Tag tag, const Parameter& parameter);
  void find_blocks(const Parameter& parameter, MappingDevice& device);

  Tensors tensors_;
  std::array<std::set<std::string>, 3> names_;
  Blocks blocks_;
  Next next_ = Next::kAdds;
};

}  // namespace awex::attach
