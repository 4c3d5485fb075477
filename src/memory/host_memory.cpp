#include "memory/host_memory.hpp"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace awex {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

/// The number in a file that holds nothing else; kUnlimited for "max" and for no such file.
uint64_t number_in(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : kUnlimited;
}

uint64_t available_by_kernel() {
  std::ifstream file("/proc/meminfo");
  for (std::string key; file >> key;) {
    uint64_t kilobytes = 0;
    if (key == "MemAvailable:" && file >> kilobytes) return kilobytes * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return kUnlimited;
}

uint64_t available_by_cgroup() {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("0::", 0) != 0) continue;
    const auto folder = "/sys/fs/cgroup" + line.substr(3) + "/";
    const uint64_t most = number_in(folder + "memory.max");
    const uint64_t used = number_in(folder + "memory.current");
    if (most == kUnlimited || used == kUnlimited) return kUnlimited;
    return most - std::min(most, used);
  }
  return kUnlimited;
}

}  // namespace

uint64_t available_host_memory() { return std::min(available_by_kernel(), available_by_cgroup()); }

}  // namespace awex
