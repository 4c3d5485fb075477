#include "memory/host_mapping.hpp"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/checked.hpp"
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

HostMapping map_part(const std::string& what, const UniqueFd& fd, int protection,
                     uint64_t offset_bytes, uint64_t bytes) {
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw errno_error("look at " + what, "fstat", errno);
  // A page that the file reaches into is there as a whole; behind that a touch is fatal.
  constexpr uint64_t kPageBytes = 4096;
  const auto has = round_up(static_cast<uint64_t>(status.st_size), kPageBytes);
  if (offset_bytes > has || bytes > has - offset_bytes) {
    throw runtime_error(fmt::format("{} ends at byte {}, behind its file, which has {}", what,
                                    offset_bytes + bytes, status.st_size),
                        "it has been shortened, or is another program's");
  }
  void* data =
      ::mmap(nullptr, bytes, protection, MAP_SHARED, fd.get(), static_cast<off_t>(offset_bytes));
  if (data == MAP_FAILED) throw errno_error("map " + what, "mmap", errno);
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

HostMapping map_file(const std::string& what, const UniqueFd& fd, uint64_t bytes) {
  return map_part(what, fd, PROT_READ | PROT_WRITE, 0, bytes);
}

HostMapping map_file_to_read(const std::string& what, const UniqueFd& fd, uint64_t offset_bytes,
                             uint64_t bytes) {
  return map_part(what, fd, PROT_READ, offset_bytes, bytes);
}

HostMapping reserve_addresses(const std::string& what, uint64_t bytes) {
  return map_anonymous(what, bytes, PROT_NONE);
}

}  // namespace awex
