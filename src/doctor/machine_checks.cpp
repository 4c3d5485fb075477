#include "doctor/machine_checks.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "base/unique_fd.hpp"
#include "base/units.hpp"
#include "memory/chunking.hpp"
#include "memory/host_memory.hpp"

namespace awex {
namespace {

/// Empty where there is no such file.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

Finding refused(const char* attempt, const char* call, int error_number) {
  return failed(errno_error(attempt, call, error_number).what(),
                "let the container's filter of system calls and the kernel (5.1 or newer) allow "
                "memfd_create with sealing: docker --security-opt seccomp=unconfined");
}

/// How a limit comes to be `wanted`, whose name is `name` for docker and `unit` for systemd.
std::string how_to_raise(const struct rlimit& limit, rlim_t wanted, const std::string& command,
                         const std::string& name, const char* unit) {
  const auto number = wanted == RLIM_INFINITY ? "-1" : std::to_string(wanted);
  const auto docker = fmt::format("docker --ulimit {}={}", name, number);
  if (limit.rlim_max >= wanted) {
    return fmt::format("raise it where the ranks start, before they do: {}; {}", command, docker);
  }
  return fmt::format(
      "the hard limit is lower, too: let root raise it for what starts the ranks "
      "(/etc/security/limits.conf and a new login; {}= in the unit of slurmd), or {}",
      unit, docker);
}

uint64_t count_open_files() {
  std::error_code unreadable;
  std::filesystem::directory_iterator entry("/proc/self/fd", unreadable);
  uint64_t open = 0;
  for (; !unreadable && entry != std::filesystem::directory_iterator();
       entry.increment(unreadable)) {
    ++open;
  }
  return open;
}

/// The word in brackets of "always [madvise] never".
std::string chosen_word(const std::string& line) {
  const auto begin = line.find('[');
  const auto end = line.find(']', begin);
  if (begin == std::string::npos || end == std::string::npos) return {};
  return line.substr(begin + 1, end - begin - 1);
}

}  // namespace

Finding check_memfd() {
  constexpr uint64_t kBytes = 4096;
  const UniqueFd fd(::memfd_create("awex-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return refused("make a file in memory", "memfd_create", errno);
  if (::ftruncate(fd.get(), kBytes) != 0) {
    return refused("size a file in memory", "ftruncate", errno);
  }
  void* data = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return refused("map a file in memory", "mmap", errno);
  ::munmap(data, kBytes);
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_GROW) != 0) {
    return refused("seal a file in memory", "fcntl(F_ADD_SEALS)", errno);
  }
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_GROW) == 0) {
    return refused("read the seals of a file in memory", "fcntl(F_GET_SEALS)", errno);
  }
  return passed("files in memory can be made, mapped and sealed");
}

Finding check_locked_memory(BackendKind backend) {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) {
    return failed(errno_error("learn the limit of locked memory", "getrlimit", errno));
  }
  if (limit.rlim_cur == RLIM_INFINITY) return passed("unlimited");
  const auto limit_text = describe_locked_memory_limit();
  auto finding =
      backend == BackendKind::kHost
          ? waived(fmt::format("{}; the host backend locks no memory", limit_text))
          : waived(
                fmt::format("{}; enough where the driver does not count pinned memory", limit_text),
                how_to_raise(limit, RLIM_INFINITY, "ulimit -l unlimited", "memlock",
                             "LimitMEMLOCK"));
  return with_value(std::move(finding), "limit_bytes", static_cast<double>(limit.rlim_cur));
}

Finding check_open_files() {
  // A region has 8 chunks or, of many GB, one for each GB; each has a descriptor, and a rank has or
  // maps four regions. Host copies of attached trainers have as many, and what they lend of their
  // own memory, block by block, has more.
  constexpr uint64_t kLeast = 32;
  constexpr uint64_t kPlenty = 4 * kMaxChunks;
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return failed(errno_error("learn the limit of open files", "getrlimit", errno));
  }
  const uint64_t open = count_open_files();
  const uint64_t most = limit.rlim_cur;
  if (limit.rlim_cur == RLIM_INFINITY) return passed("unlimited");
  const rlim_t wanted = 4 * kPlenty;
  const auto remedy =
      how_to_raise(limit, wanted, fmt::format("ulimit -n {}", wanted), "nofile", "LimitNOFILE");
  const auto text =
      fmt::format("at most {}, a rank takes one for each chunk of memory and lent block", most);
  auto finding = most < open + kLeast    ? failed(text, remedy)
                 : most < open + kPlenty ? waived(text + ": enough for small models", remedy)
                                         : passed(fmt::format("at most {}", most));
  return with_value(std::move(finding), "limit", static_cast<double>(most));
}

Finding check_dev_shm(BackendKind backend, uint64_t node_ranks) {
  // Open MPI takes 4 MiB a rank, NCCL about 10 MB for each pair that it connects through it.
  constexpr uint64_t kForRank = 16ULL << 20;
  constexpr const char* kPath = "/dev/shm";
  struct statvfs status {};
  if (::statvfs(kPath, &status) != 0) {
    return failed(errno_error("learn the size of /dev/shm", "statvfs", errno).what(),
                  "mount it: mount -t tmpfs tmpfs /dev/shm");
  }
  // A tmpfs without a limit has no blocks at all.
  const uint64_t all = status.f_blocks * status.f_frsize;
  const uint64_t free = status.f_bavail * status.f_frsize;
  if (all == 0) return passed("without a limit");
  const uint64_t wanted = kForRank * node_ranks;
  Finding finding = passed(fmt::format("{}", format_bytes(all)));
  if (free < wanted) {
    const auto text = fmt::format("{} free of {}; {} ranks want {}", format_bytes(free),
                                  format_bytes(all), node_ranks, format_bytes(wanted));
    const auto remedy = fmt::format(
        "free some (ls -l /dev/shm), or enlarge it: mount -o remount,size={0}M /dev/shm; docker "
        "--shm-size={0}m",
        (wanted >> 20) + 64);
    finding = backend == BackendKind::kCuda
                  ? failed(text + " for MPI and NCCL", remedy)
                  : waived(text + ": MPI takes slower ways without it", remedy);
  }
  finding = with_value(std::move(finding), "size_bytes", static_cast<double>(all));
  return with_value(std::move(finding), "free_bytes", static_cast<double>(free));
}

Finding check_huge_pages(const std::string& root) {
  const std::string path = "/sys/kernel/mm/transparent_hugepage/enabled";
  const auto mode = chosen_word(first_line(root + path));
  if (mode == "always" || mode == "madvise") return passed(mode);
  const auto remedy = fmt::format("as root on the node: echo madvise > {}", path);
  if (mode == "never") return waived("never: host memory is prepared more slowly", remedy);
  return waived("this kernel has none: host memory is prepared more slowly");
}

Finding check_ptrace_scope(const std::string& root) {
  const auto text = first_line(root + "/proc/sys/kernel/yama/ptrace_scope");
  if (text.empty()) return passed("Yama restricts nothing here");
  if (text == "0") return passed("0: processes of one user may take each other's descriptors");
  return waived(
      fmt::format("{}: descriptors go through sockets, unless this user may trace all", text),
      "nothing needs to be done; sysctl kernel.yama.ptrace_scope=0 lets pidfd_getfd do it");
}

std::string describe_numa_nodes(const std::string& root) {
  const auto list = first_line(root + "/sys/devices/system/node/online");
  size_t nodes = 0;
  for (size_t at = 0; at < list.size();) {
    const auto end = std::min(list.find(',', at), list.size());
    const auto part = std::string_view(list).substr(at, end - at);
    const auto dash = part.find('-');
    size_t first = 0;
    size_t last = 0;
    std::from_chars(part.data(), part.data() + part.size(), first);
    last = first;
    if (dash != std::string_view::npos) {
      std::from_chars(part.data() + dash + 1, part.data() + part.size(), last);
    }
    nodes += last < first ? 0 : last - first + 1;
    at = end + 1;
  }
  if (nodes == 0) return {};
  return nodes == 1 ? "1 NUMA node" : fmt::format("{} NUMA nodes", nodes);
}

}  // namespace awex
