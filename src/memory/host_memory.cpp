#include "memory/host_memory.hpp"

#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <limits>

#include <map>
#include <optional>

#include "base/error.hpp"
#include "base/units.hpp"

namespace awex {
namespace {

namespace fs = std::filesystem;

/// Version 1 writes the largest multiple of a page for "no limit"; no machine has near as much.
constexpr uint64_t kSurelyUnlimited = 1ULL << 60;

/// The files of one version of cgroups that say how much memory a group holds and may hold.
struct CgroupFiles {
  const char* mount;
  const char* used;
  const char* hard_limit;
  const char* soft_limit;             ///< Beyond it the kernel only slows down; null for none.
  std::array<const char*, 3> cached;  ///< Entries of memory.stat that count what it can take back.
};

constexpr CgroupFiles kVersion1{"/sys/fs/cgroup/memory",
                                "memory.usage_in_bytes",
                                "memory.limit_in_bytes",
                                nullptr,
                                {"total_inactive_file", "total_active_file", ""}};
constexpr CgroupFiles kVersion2{"/sys/fs/cgroup",
                                "memory.current",
                                "memory.max",
                                "memory.high",
                                {"inactive_file", "active_file", "slab_reclaimable"}};

/// The number that a file begins with; nothing for "max", and for no such file.
std::optional<uint64_t> number_in(const fs::path& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

/// Lines of a name and a number, as /proc/meminfo and memory.stat have them.
std::map<std::string, uint64_t> numbers_in(const fs::path& path) {
  std::map<std::string, uint64_t> numbers;
  std::ifstream file(path);
  std::string name;
  uint64_t value = 0;
  while (file >> name >> value) {
    numbers[name] = value;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return numbers;
}

uint64_t identity_of(const fs::path& folder) {
  struct stat status {};
  return ::stat(folder.c_str(), &status) == 0 ? status.st_ino : 0;
}

/// The limits of one cgroup.
void add_bounds(std::vector<HostBound>& bounds, const CgroupFiles& files, const fs::path& folder,
                const std::string& cgroup, uint64_t swap_bytes) {
  const auto used = number_in(folder / files.used);
  if (!used) return;
  const auto counts = numbers_in(folder / "memory.stat");
  uint64_t cached = 0;
  for (const char* name : files.cached) {
    const auto entry = counts.find(name);
    if (entry != counts.end()) cached += entry->second;
  }
  const uint64_t kept = *used - std::min(*used, cached);
  for (const char* file : {files.hard_limit, files.soft_limit}) {
    const auto limit = file == nullptr ? std::nullopt : number_in(folder / file);
    if (!limit || *limit >= kSurelyUnlimited) continue;
    const uint64_t most = file == files.hard_limit ? *limit + swap_bytes : kUnbounded;
    bounds.push_back(
        {identity_of(folder), most, *limit - std::min(*limit, kept),
         fixed_text<192>(fmt::format("{} of cgroup {} ({})", file, cgroup, format_bytes(*limit)))});
  }
}

/// A cgroup's limits and those of the groups that it is in. What lies above a container's own
/// mount is not there to be read.
void add_bounds_upwards(std::vector<HostBound>& bounds, const CgroupFiles& files,
                        const std::string& root, fs::path cgroup, uint64_t swap_bytes) {
  while (true) {
    const auto folder = fs::path(root + files.mount) / cgroup.relative_path();
    add_bounds(bounds, files, folder, cgroup.string(), swap_bytes);
    if (!cgroup.has_relative_path()) return;
    cgroup = cgroup.parent_path();
  }
}

/// Whether a comma separated list names the memory controller.
bool has_memory(const std::string& controllers) {
  return ("," + controllers + ",").find(",memory,") != std::string::npos;
}

}  // namespace

std::vector<HostBound> host_memory_bounds(const std::string& root) {
  constexpr uint64_t kKilobyte = 1024;
  std::vector<HostBound> bounds;
  const auto memory = numbers_in(root + "/proc/meminfo");
  const auto available = memory.find("MemAvailable:");
  if (available != memory.end()) {
    bounds.push_back({0, kUnbounded, available->second * kKilobyte,
                      fixed_text<192>("the kernel (MemAvailable)")});
  }
  const auto swap = memory.find("SwapTotal:");
  const uint64_t swap_bytes = swap == memory.end() ? 0 : swap->second * kKilobyte;

  // Lines are "number:controllers:path", without controllers for version 2.
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const auto controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !has_memory(controllers)) continue;
    const auto& files = controllers.empty() ? kVersion2 : kVersion1;
    add_bounds_upwards(bounds, files, root, line.substr(second + 1), swap_bytes);
  }
  return bounds;
}

std::string describe_locked_memory_limit() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return "unknown";
  return limit.rlim_cur == RLIM_INFINITY ? "unlimited" : format_bytes(limit.rlim_cur);
}

}  // namespace awex
