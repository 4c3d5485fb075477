#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "base/unique_fd.hpp"

namespace awex {

/// Owns addresses of this process, with whatever is mapped there.
class HostMapping {
 public:
  HostMapping(std::byte* data, uint64_t bytes) : data_(data), bytes_(bytes) {}
  HostMapping(HostMapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  HostMapping& operator=(HostMapping&&) = delete;
  HostMapping(const HostMapping&) = delete;
  HostMapping& operator=(const HostMapping&) = delete;
  ~HostMapping();

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  uint64_t bytes_;
};

/// Maps memory of nobody else, which is taken when it is touched. `what` is for messages. Throws
/// Error(kRuntime).
[[nodiscard]] HostMapping map_private_memory(const std::string& what, uint64_t bytes);
/// Maps memory that others can map as well over private memory that was not touched. Returns its
/// descriptor, of a file of as many bytes. Throws Error(kRuntime).
[[nodiscard]] UniqueFd map_shared_memory(const std::string& what, std::span<std::byte> over);
/// Maps the first `bytes` (> 0) of a file, to read and write, with all who map it. Throws
/// Error(kRuntime), also where the file ends before.
[[nodiscard]] HostMapping map_file(const std::string& what, const UniqueFd& fd, uint64_t bytes);
/// The same, to read alone, of bytes from `offset_bytes` on, a multiple of the page size.
[[nodiscard]] HostMapping map_file_to_read(const std::string& what, const UniqueFd& fd,
                                           uint64_t offset_bytes, uint64_t bytes);
/// Reserves addresses, which fault when they are used. Throws Error(kRuntime).
[[nodiscard]] HostMapping reserve_addresses(const std::string& what, uint64_t bytes);

}  // namespace awex
