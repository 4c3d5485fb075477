#include "attach/library/tag_memory.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "attach/message.hpp"
#include "base/checked.hpp"
#include "base/error.hpp"

namespace awex::attach {
namespace {

void expect_possible(const std::string& name, uint64_t bytes, uint64_t chunk_bytes) {
  constexpr uint64_t kMost = UINT64_MAX / 2;
  const bool is_possible = chunk_bytes > 0 && bytes <= kMost && chunk_bytes <= kMost &&
                           ceil_div(bytes, chunk_bytes) <= kMaxChunks;
  if (is_possible) return;
  throw runtime_error(
      fmt::format("the rank's {} of {} bytes in chunks of {} cannot be", name, bytes, chunk_bytes),
      kOtherBuild);
}

std::unique_ptr<MappedChunks> reserve(MappingDevice& device, const std::string& name,
                                      uint64_t bytes, uint64_t chunk_bytes) {
  expect_possible(name, bytes, chunk_bytes);
  return device.reserve(name, bytes, chunk_bytes);
}

UniqueFd duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) throw errno_error("duplicate the descriptor of a chunk", "fcntl", errno);
  return copy;
}

}  // namespace

TagMemory::TagMemory(MappingDevice& device, Tag tag, uint64_t bytes, uint64_t chunk_bytes)
    : device_(device),
      name_(tag_name(tag)),
      chunks_(reserve(device, name_, bytes, chunk_bytes)),
      arena_(std::make_shared<Arena>(name_, chunks_->data(), bytes)),
      copy_(chunks_->chunking()) {}

void TagMemory::map(uint64_t first, std::vector<UniqueFd> fds, bool last, bool has_content) {
  const uint64_t count = fds.size();
  const bool fits = !is_mapped_ && count > 0 && first < chunks() && count <= chunks() - first;
  if (!fits) {
    throw runtime_error(fmt::format("cannot map {} chunks of {} from chunk {} of {} on{}", count,
                                    name_, first, chunks(), is_mapped_ ? ": all are mapped" : ""),
                        kOtherBuild);
  }
  for (uint64_t begin = 0; begin < count;) {
    std::vector<UniqueFd> missing;
    uint64_t end = begin;
    while (end < count && !chunks_->is_mapped(first + end))
      missing.push_back(std::move(fds[end++]));
    if (!missing.empty()) chunks_->map(first + begin, std::move(missing));
    begin = std::max(end, begin + 1);
  }
  if (!last) return;
  if (const auto missing = find_unmapped()) {
    throw runtime_error(fmt::format("all of {} is to be mapped, and chunk {} of {} has not come",
                                    name_, *missing + 1, chunks()),
                        kOtherBuild);
  }
  is_mapped_ = true;
  has_content_ = has_content;
  arena_->set_mapped(true);
}

void TagMemory::map_placeholder() {
  if (is_mapped_) return;
  const auto owner = device_.make_chunks(name_, bytes());
  const auto& chunking = owner->chunking();
  const uint64_t last = chunks() - 1;
  const auto stands_for = [&](uint64_t chunk) {
    return chunking.held_bytes(chunk, 1) == chunking.held_bytes(0, 1) ? 0 : chunk;
  };
  owner->take(0, 1);
  if (stands_for(last) != 0) owner->take(last, 1);
  try {
    for (uint64_t chunk = 0; chunk <= last; ++chunk) {
      std::vector<UniqueFd> fd;
      fd.push_back(duplicate(owner->export_fd(stands_for(chunk))));
      chunks_->map(chunk, std::move(fd));
    }
  } catch (...) {
    unmap();
    throw;
  }
  is_mapped_ = has_placeholder_ = true;
  has_content_ = false;
  arena_->set_mapped(true);
}

void TagMemory::unmap() {
  arena_->set_mapped(false);
  chunks_->unmap();
  restored_.reset();
  is_mapped_ = has_placeholder_ = false;
}

std::optional<uint64_t> TagMemory::find_unmapped() const {
  for (uint64_t chunk = 0; chunk < chunks(); ++chunk) {
    if (!chunks_->is_mapped(chunk)) return chunk;
  }
  return std::nullopt;
}

void TagMemory::leave() {
  if (!is_mapped_) return;
  copy_.forget();
  is_mapped_ = false;
  arena_->set_mapped(false);
}

void TagMemory::let_go(uint64_t first, std::vector<UniqueFd> fds, std::vector<ChunkDigests> hold) {
  if (is_mapped_) {
    throw runtime_error(fmt::format("cannot let chunks of {} go: it is the engine's", name_),
                        kOtherBuild);
  }
  const uint64_t count = hold.size();
  copy_.add(first, std::move(fds), std::move(hold));
  for (uint64_t chunk = first; chunk < first + count; ++chunk) {
    if (chunks_->is_mapped(chunk)) chunks_->unmap(chunk, 1);
  }
}

bool TagMemory::is_safe() const {
  for (uint64_t chunk = 0; chunk < chunks(); ++chunk) {
    if (!chunks_->is_mapped(chunk) && !copy_.has(chunk)) return false;
  }
  return true;
}

void TagMemory::restore() {
  if (is_mapped_) return;
  if (!is_safe()) {
    throw runtime_error(
        fmt::format("{} cannot be brought back: a part of it was never here", name_),
        "start from a checkpoint");
  }
  restored_ = device_.make_chunks(name_, bytes());
  is_proven_ = copy_.bring_back(device_, *restored_, *chunks_);
  is_mapped_ = has_content_ = true;
  arena_->set_mapped(true);
}

}  // namespace awex::attach
