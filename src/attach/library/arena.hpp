#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace awex::attach {

/// Shares a tag's memory out to an allocator. It keeps its book beside the memory and never touches
/// it: best fit, neighbours that are free are one again, everything 512-byte aligned. Thread safe.
class Arena {
 public:
  static constexpr uint64_t kAlignment = 512;

  /// Of `bytes` from `begin` on, which is aligned. `name` is for messages: "weights".
  Arena(std::string name, std::byte* begin, uint64_t bytes);

  /// Whether the memory is there now; at first it is not.
  void set_mapped(bool mapped);
  /// At least `bytes` (> 0). Throws Error(kRuntime) where no free place is large enough, with what
  /// is left, and while the memory is not mapped.
  [[nodiscard]] std::byte* allocate(uint64_t bytes);
  /// False for what was not allocated here, or is free already.
  bool free(std::byte* memory);
  /// Bytes that are allocated now, rounded up.
  [[nodiscard]] uint64_t used_bytes() const;
  [[nodiscard]] bool holds(const std::byte* memory) const {
    return memory >= begin_ && memory < begin_ + bytes_;
  }

 private:
  void put_free(uint64_t offset, uint64_t bytes);
  void take_free(uint64_t offset, uint64_t bytes);

  std::string name_;
  std::byte* begin_;
  uint64_t bytes_;
  mutable std::mutex mutex_;
  bool mapped_ = false;
  uint64_t used_bytes_ = 0;
  std::map<uint64_t, uint64_t> used_;             ///< Bytes by offset.
  std::map<uint64_t, uint64_t> free_;             ///< The same of what is free,
  std::set<std::pair<uint64_t, uint64_t>> fits_;  ///< by bytes, then offset.
};

}  // namespace awex::attach
