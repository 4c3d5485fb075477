#include "memory/host_mapping.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "base/error.hpp"
#include "base/units.hpp"

namespace awex {
namespace {

HostMapping map_anonymous(const std::string& what, uint64_t bytes, int protection) {
  void* data =
      ::mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    throw runtime_error(
        errno_error(fmt::format("reserve {} of addresses for {}", format_bytes(bytes), what),
                    "mmap", errno)
            .what(),
        "see the limit of addresses (ulimit -v)");
  }
  return {static_cast<std::byte*>(data), bytes};
}

}  // namespace

HostMapping::~HostMapping() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

HostMapping map_private_memory(const std::string& what, uint64_t bytes) {
  return map_anonymous(what, bytes, PROT_READ | PROT_WRITE);
}

UniqueFd map_shared_memory(const std::string& what, std::span<std::byte> over) {
  const auto attempt = fmt::format("take {} of {} to share", format_bytes(over.size()), what);
  UniqueFd fd(::memfd_create("awex-copy", MFD_CLOEXEC));
  if (!fd.valid()) throw errno_error(attempt, "memfd_create", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(over.size())) != 0) {
    throw errno_error(attempt, "ftruncate", errno);
  }
  void* data =
      ::mmap(over.data(), over.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd.get(), 0);
  if (data == MAP_FAILED) throw errno_error(attempt, "mmap", errno);
  return fd;
}

HostMapping reserve_addresses(const std::string& what, uint64_t bytes) {
  return map_anonymous(what, bytes, PROT_NONE);
}

}  // namespace awex
