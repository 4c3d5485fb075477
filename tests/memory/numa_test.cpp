#include "memory/numa.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/error.hpp"

using namespace awex;

namespace {

int next_id = 0;

std::string object(const std::string& attributes, const std::string& content = {}) {
  return "<object gp_index=\"" + std::to_string(++next_id) + "\" " + attributes + ">" + content +
         "</object>";
}

std::string sets(const std::string& cpus, const std::string& nodes) {
  return " cpuset=\"" + cpus + "\" complete_cpuset=\"" + cpus + "\" nodeset=\"" + nodes +
         "\" complete_nodeset=\"" + nodes + "\"";
}

std::string bridge_with_gpu(const std::string& bus) {
  const auto gpu = object("type=\"PCIDev\" pci_busid=\"0000:" + bus +
                          ":00.0\" pci_type=\"0302 [10de:2330] [10de:16c1] a1\" "
                          "pci_link_speed=\"0.000000\"");
  return object("type=\"Bridge\" bridge_type=\"0-1\" depth=\"0\" bridge_pci=\"0000:[" + bus + "-" +
                    bus + "]\"",
                gpu);
}

/// A processor with its own memory and what is attached to it.
std::string package(const std::string& index, const std::string& mask,
                    const std::string& attached) {
  const auto at = " os_index=\"" + index + "\"" + sets(mask, mask);
  const auto memory = object("type=\"NUMANode\"" + at + " local_memory=\"1073741824\"");
  const auto core = object("type=\"Core\"" + at, object("type=\"PU\"" + at));
  return object("type=\"Package\"" + at, memory + core + attached);
}

/// What hwloc writes of a machine of two processors with a GPU each, and one more that hangs on
/// neither.
std::string two_processors() {
  const std::string all =
      sets("0x00000003", "0x00000003") +
      " allowed_cpuset=\"0x00000003\" allowed_nodeset=\"0x00000003\" os_index=\"0\"";
  return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
         "<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">\n<topology version=\"2.0\">" +
         object("type=\"Machine\"" + all, package("0", "0x00000001", bridge_with_gpu("1b")) +
                                              package("1", "0x00000002", bridge_with_gpu("9d")) +
                                              bridge_with_gpu("c0")) +
         "</topology>";
}

}  // namespace

TEST_CASE("memory goes to the node that a device hangs on") {
  CHECK(NumaNodes::near_pci_of("0000:1b:00.0", two_processors()).describe() == "NUMA node 0");
  CHECK(NumaNodes::near_pci_of("0000:9d:00.0", two_processors()).describe() == "NUMA node 1");
}

TEST_CASE("a device that is near to all nodes, or unknown, prefers none") {
  CHECK(NumaNodes::near_pci_of("0000:c0:00.0", two_processors()).describe().empty());
  CHECK(NumaNodes::near_pci_of("0000:77:00.0", two_processors()).describe().empty());
  CHECK(NumaNodes::near_pci_of("no address", two_processors()).describe().empty());
}

TEST_CASE("a description that is none is refused") {
  CHECK_THROWS_AS(static_cast<void>(NumaNodes::near_pci_of("0000:1b:00.0", "<topology")), Error);
}

TEST_CASE("memory that cannot be placed can be used all the same") {
  // Placing this process's memory by the description of another machine is refused.
  const auto nodes = NumaNodes::near_pci_of("0000:9d:00.0", two_processors());
  std::vector<std::byte> memory(1 << 20);
  nodes.prefer_for(memory);
  nodes.prefer_for(memory);
  NumaNodes().prefer_for(memory);
  memory.back() = std::byte{1};
  CHECK(memory.back() == std::byte{1});
}

TEST_CASE("this machine has no device at an address that PCI does not have") {
  CHECK(NumaNodes::near_pci("ffff:ff:1f.7").describe().empty());
}
