#include "attach/library/arena.hpp"

#include <iterator>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "base/units.hpp"

namespace awex::attach {

Arena::Arena(std::string name, std::byte* begin, uint64_t bytes)
    : name_(std::move(name)), begin_(begin), bytes_(bytes) {
  // What lies behind the last whole step is too small for anyone.
  const uint64_t whole = bytes / kAlignment * kAlignment;
  if (whole > 0) put_free(0, whole);
}

void Arena::set_mapped(bool mapped) {
  const std::lock_guard lock(mutex_);
  mapped_ = mapped;
}

std::byte* Arena::allocate(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (!mapped_) {
    throw runtime_error(fmt::format("cannot allocate {} of {}: its memory is not mapped now",
                                    format_bytes(bytes), name_),
                        "allocate between attach, take_back or wait and the next hand-over");
  }
  const bool fits_at_all = bytes <= bytes_;
  const uint64_t needed = fits_at_all ? round_up(bytes, kAlignment) : bytes;
  const auto place = fits_at_all ? fits_.lower_bound({needed, 0}) : fits_.end();
  if (place == fits_.end()) {
    const uint64_t largest = fits_.empty() ? 0 : fits_.rbegin()->first;
    throw runtime_error(
        fmt::format("cannot allocate {} of {}: {} of {} are used, and the largest free place has "
                    "{}",
                    format_bytes(bytes), name_, format_bytes(used_bytes_), format_bytes(bytes_),
                    format_bytes(largest)),
        "ask for more when attaching, by tag: in Python optimizer_bytes and weights_bytes of "
        "awex_colocate.torch or .megatron tell how many bytes");
  }
  const auto [free_bytes, offset] = *place;
  take_free(offset, free_bytes);
  if (free_bytes > needed) put_free(offset + needed, free_bytes - needed);
  used_.emplace(offset, needed);
  used_bytes_ += needed;
  return begin_ + offset;
}

bool Arena::free(std::byte* memory) {
  const std::lock_guard lock(mutex_);
  if (!holds(memory)) return false;
  const auto found = used_.find(static_cast<uint64_t>(memory - begin_));
  if (found == used_.end()) return false;
  uint64_t offset = found->first;
  uint64_t bytes = found->second;
  used_.erase(found);
  used_bytes_ -= bytes;
  const auto behind = free_.find(offset + bytes);
  if (behind != free_.end()) {
    const uint64_t more = behind->second;
    take_free(offset + bytes, more);
    bytes += more;
  }
  const auto after = free_.lower_bound(offset);
  if (after != free_.begin()) {
    const auto before = *std::prev(after);
    if (before.first + before.second == offset) {
      take_free(before.first, before.second);
      offset = before.first;
      bytes += before.second;
    }
  }
  put_free(offset, bytes);
  return true;
}

uint64_t Arena::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return used_bytes_;
}

void Arena::put_free(uint64_t offset, uint64_t bytes) {
  free_.emplace(offset, bytes);
  fits_.emplace(bytes, offset);
}

void Arena::take_free(uint64_t offset, uint64_t bytes) {
  free_.erase(offset);
  fits_.erase({bytes, offset});
}

}  // namespace awex::attach
