#include "memory/host_lent.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <utility>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "memory/host_mapping.hpp"

namespace awex {
namespace {

constexpr auto kRemedy =
    "let a job that is started anew have it (adopt), or make it shared before it is declared "
    "(module.share_memory(); of FSDP2 each parameter's to_local().share_memory_())";

/// A line of /proc/self/maps (proc(5)).
struct MapsLine {
  uint64_t begin = 0;
  uint64_t end = 0;
  bool is_shared = false;
  uint64_t offset_bytes = 0;
  dev_t device = 0;
  ino_t inode = 0;
};

MapsLine parse_maps_line(const std::string& line) {
  MapsLine map;
  std::istringstream fields(line);
  std::string permissions;
  unsigned major_number = 0;
  unsigned minor_number = 0;
  char dash = 0;
  char colon = 0;
  fields >> std::hex >> map.begin >> dash >> map.end >> permissions >> map.offset_bytes >>
      major_number >> colon >> minor_number >> std::dec >> map.inode;
  map.is_shared = permissions.size() == 4 && permissions[3] == 's';
  map.device = makedev(major_number, minor_number);
  return map;
}

MapsLine mapping_of(uint64_t address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const auto map = parse_maps_line(line);
    if (map.begin <= address && address < map.end) return map;
  }
  throw request_error(fmt::format("nothing is mapped at {:#x}", address));
}

/// A descriptor of the file, of those that this process has.
UniqueFd find_descriptor(const MapsLine& map) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc/self/fd"), &::closedir);
  if (!folder) throw errno_error("look at this process's descriptors", "opendir", errno);
  while (const dirent* entry = ::readdir(folder.get())) {
    if (entry->d_name[0] == '.') continue;
    const int fd = std::atoi(entry->d_name);
    struct stat status {};
    if (::fstat(fd, &status) != 0) continue;
    if (status.st_ino != map.inode || status.st_dev != map.device) continue;
    UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy.valid()) throw errno_error("keep a descriptor of lent memory", "fcntl", errno);
    return copy;
  }
  return {};
}

class OpenedHostBlock final : public OpenedBlock {
 public:
  explicit OpenedHostBlock(HostMapping mapping) : mapping_(std::move(mapping)) {}
  [[nodiscard]] const std::byte* data() const override { return mapping_.data(); }

 private:
  HostMapping mapping_;
};

}  // namespace

Lending lend_host_memory(const std::byte* address) {
  const auto number = reinterpret_cast<uintptr_t>(address);
  const auto map = mapping_of(number);
  if (!map.is_shared || map.inode == 0) {
    throw request_error(
        fmt::format("the memory at {:#x} is private to this process: no other one can map it",
                    number),
        kRemedy);
  }
  Lending lending;
  lending.fd = find_descriptor(map);
  if (!lending.fd.valid()) {
    throw request_error(
        fmt::format("the memory at {:#x} is a file that this process has no descriptor of", number),
        kRemedy);
  }
  lending.block = {map.begin, map.end - map.begin, map.offset_bytes, true, {}};
  return lending;
}

std::unique_ptr<OpenedBlock> open_host_block(const std::string& name, const LentBlock& block,
                                             const UniqueFd& fd) {
  return std::make_unique<OpenedHostBlock>(
      map_file_to_read("what is lent of " + name, fd, block.offset_bytes, block.bytes));
}

}  // namespace awex
