#include "cycle/rank_status.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

#include "memory/host_memory.hpp"

namespace awex {
namespace {

uint64_t resident_set_bytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t all_pages = 0;
  uint64_t resident_pages = 0;
  file >> all_pages >> resident_pages;
  return resident_pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

RankStatus status_of_process() {
  RankStatus status;
  status.pid = ::getpid();
  status.resident_set_bytes = resident_set_bytes();
  uint64_t least_left = kUnbounded;
  for (const auto& bound : host_memory_bounds()) {
    if (bound.most_bytes == kUnbounded || bound.left_bytes >= least_left) continue;
    least_left = bound.left_bytes;
    status.host_limit_bytes = bound.most_bytes;
    status.host_used_bytes = bound.most_bytes - bound.left_bytes;
  }
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    status.lock_limit_bytes = limit.rlim_cur;
  }
  return status;
}

}  // namespace awex
