#include "attach/memory_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <new>
#include <utility>

#include "base/error.hpp"
#include "base/whole_file.hpp"

namespace awex::attach {
namespace {

/// A file in memory that nobody can shorten under those who map it.
UniqueFd make_memory_file(const char* name, uint64_t bytes) {
  const auto attempt = fmt::format("make \"{}\"", name);
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) throw errno_error(attempt, "memfd_create", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    throw errno_error(attempt, "ftruncate", errno);
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
    throw errno_error(attempt, "fcntl", errno);
  }
  return fd;
}

}  // namespace

OwnPage::OwnPage()
    : fd_(make_memory_file("awex-control", sizeof(ControlPage))),
      mapping_(map_file("the engine's control page", fd_, sizeof(ControlPage))),
      page_(new (mapping_.data()) ControlPage) {}

UniqueFd file_of_kept(std::string_view bytes) {
  auto fd = make_memory_file("awex-kept", bytes.size());
  if (!write_from_start(fd.get(), bytes)) {
    throw errno_error("keep what the engine wanted kept", "pwrite", errno);
  }
  return fd;
}

std::string read_kept(const ToRank& message, const std::vector<UniqueFd>& fds) {
  struct stat status {};
  const bool is_file = fds.size() == 1 && ::fstat(fds[0].get(), &status) == 0 &&
                       S_ISREG(status.st_mode) &&
                       static_cast<uint64_t>(status.st_size) >= message.kept_bytes;
  if (!is_file || message.kept_bytes > kMostKeptBytes) {
    throw request_error(fmt::format("what it wants kept is not a file of {} bytes, or too long",
                                    message.kept_bytes));
  }
  auto kept = read_from_start(fds[0].get(), message.kept_bytes);
  if (!kept || kept->size() < message.kept_bytes) {
    throw errno_error("read what the engine wants kept", "pread", errno);
  }
  return std::move(*kept);
}

}  // namespace awex::attach
