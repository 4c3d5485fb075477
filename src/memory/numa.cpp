#include "memory/numa.hpp"

#include <hwloc.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"

namespace awex {
namespace {

/// Owns a description of a machine.
class Topology {
 public:
  /// This machine, or the one that `xml` describes where that is not empty.
  explicit Topology(const std::string& xml) {
    if (hwloc_topology_init(&topology_) != 0) {
      throw errno_error("begin to learn the NUMA nodes", "hwloc_topology_init", errno);
    }
    try {
      load(xml);
    } catch (...) {
      hwloc_topology_destroy(topology_);
      throw;
    }
  }
  Topology(const Topology&) = delete;
  Topology& operator=(const Topology&) = delete;
  Topology(Topology&&) = delete;
  Topology& operator=(Topology&&) = delete;
  ~Topology() { hwloc_topology_destroy(topology_); }

  [[nodiscard]] hwloc_topology_t get() const { return topology_; }

 private:
  void load(const std::string& xml) const {
    // A GPU may stand behind bridges without being what hwloc calls important.
    hwloc_topology_set_type_filter(topology_, HWLOC_OBJ_PCI_DEVICE, HWLOC_TYPE_FILTER_KEEP_ALL);
    if (!xml.empty() && hwloc_topology_set_xmlbuffer(topology_, xml.c_str(),
                                                     static_cast<int>(xml.size() + 1)) != 0) {
      throw errno_error("read a description of a machine", "hwloc_topology_set_xmlbuffer", errno);
    }
    if (hwloc_topology_load(topology_) != 0) {
      throw errno_error("learn the NUMA nodes", "hwloc_topology_load", errno);
    }
  }

  hwloc_topology_t topology_ = nullptr;
};

}  // namespace

struct NumaNodes::State {
  explicit State(const std::string& xml) : machine(xml) {}

  Topology machine;
  hwloc_const_nodeset_t nodes = nullptr;  ///< Belongs to the machine.
  std::atomic<bool> was_refused{false};
};

NumaNodes NumaNodes::near_pci_of(const std::string& bus_id, const std::string& xml) {
  auto state = std::make_shared<State>(xml);
  const auto machine = state->machine.get();
  const auto all = hwloc_topology_get_topology_nodeset(machine);
  NumaNodes result;
  if (hwloc_bitmap_weight(all) < 2) return result;
  const auto device = hwloc_get_pcidev_by_busidstring(machine, bus_id.c_str());
  const auto place = device == nullptr ? nullptr : hwloc_get_non_io_ancestor_obj(machine, device);
  if (place == nullptr || hwloc_bitmap_isequal(place->nodeset, all) != 0) {
    log::detail(
        fmt::format("cannot tell which NUMA node is nearest to the GPU at {}{}: its host "
                    "memory lies where the kernel puts it",
                    bus_id, device == nullptr ? ", which hwloc does not find" : ""));
    return result;
  }
  state->nodes = place->nodeset;
  result.state_ = std::move(state);
  return result;
}

NumaNodes NumaNodes::near_pci(const std::string& bus_id) {
  try {
    auto result = near_pci_of(bus_id, {});
    if (result.state_) {
      log::detail(
          fmt::format("host memory of the GPU at {} lies on {}", bus_id, result.describe()));
    }
    return result;
  } catch (const Error& error) {
    log::detail(fmt::format("{}: host memory lies where the kernel puts it", error.what()));
    return {};
  }
}

void NumaNodes::prefer_for(std::span<std::byte> memory) const {
  if (!state_) return;
  // Not strict: memory of a farther node is slower, none at all ends the rank.
  const int result =
      hwloc_set_area_membind(state_->machine.get(), memory.data(), memory.size(), state_->nodes,
                             HWLOC_MEMBIND_BIND, HWLOC_MEMBIND_BYNODESET);
  if (result == 0) return;
  const int error = errno;
  if (state_->was_refused.exchange(true)) return;
  log::detail(
      fmt::format("cannot place host memory on {}: {} ({}); copies may be slower. A "
                  "container may need the right to set memory policies (CAP_SYS_NICE)",
                  describe(), std::strerror(error), error));
}

std::string NumaNodes::describe() const {
  if (!state_) return {};
  std::array<char, 128> list{};
  hwloc_bitmap_list_snprintf(list.data(), list.size(), state_->nodes);
  return fmt::format("NUMA node{} {}", hwloc_bitmap_weight(state_->nodes) == 1 ? "" : "s",
                     list.data());
}

}  // namespace awex
