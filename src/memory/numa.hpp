#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace awex {

/// NUMA nodes that host memory should lie on. By default none in particular. Copies share what they
/// refer to. Thread safe.
class NumaNodes {
 public:
  NumaNodes() = default;

  /// Those nearest to the PCI device at `bus_id` ("0000:1b:00.0"). None in particular where memory
  /// is equally near or that cannot be known, which is told on stderr when verbose. Never throws
  /// because of what the machine is.
  [[nodiscard]] static NumaNodes near_pci(const std::string& bus_id);
  /// The same on the machine that an hwloc XML document describes. Throws an Error when it is none.
  [[nodiscard]] static NumaNodes near_pci_of(const std::string& bus_id, const std::string& xml);

  /// Lets the kernel take pages of `memory` that were not touched yet from these nodes, and from
  /// others when they are full. The first refusal is told on stderr when verbose.
  void prefer_for(std::span<std::byte> memory) const;

  /// "NUMA node 1" or "NUMA nodes 0,1"; empty for none in particular.
  [[nodiscard]] std::string describe() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace awex
