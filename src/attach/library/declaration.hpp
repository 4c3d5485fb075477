#pragma once

#include <array>
#include <cstdint>
#include <functional>
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
  using Lend = std::function<void(Lending)>;

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
  /// A tensor of weights in this process's own memory; `device` says whether it can be
  /// lent, null where there is nobody to lend to. Throws request errors, for memory that cannot be
  /// lent, too.
  void add_own(const Parameter& parameter, MappingDevice* device);

  /// Calls `lend` with each block that the weights lie in now, one after the other, so that only
  /// that one's descriptor need be open. Throws request errors as add_own does, and what `lend`
  /// throws.
  void lend_weights(MappingDevice& device, const Lend& lend) const;

 private:
  enum class Next : uint8_t { kAdds, kBeginsAll, kBeginsWeights };

  void begin_list();
  void put(Tag tag, const Parameter& parameter);

  Tensors tensors_;
  std::array<std::set<std::string>, 3> names_;
  Blocks blocks_;  ///< Known to be lendable.
  Next next_ = Next::kAdds;
};

}  // namespace awex::attach
