#include "attach/library/tag_memory.hpp"

#include <fcntl.h>

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

UniqueFd duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) throw errno_error("duplicate the descriptor of a chunk", "fcntl", errno);
  return copy;
}

}  // namespace

TagMemory::TagMemory(MappingDevice& device, Tag tag, uint64_t bytes, uint64_t chunk_bytes)
    : device_(device), name_(tag_name(tag)) {
  expect_possible(name_, bytes, chunk_bytes);
  chunks_ = device_.reserve(name_, bytes, chunk_bytes);
  arena_ = std::make_shared<Arena>(name_, chunks_->data(), bytes);
}

void TagMemory::map(uint64_t first, std::vector<UniqueFd> fds, bool last, bool has_content) {
  const uint64_t all = chunks_->chunking().count();
  const uint64_t count = fds.size();
  const bool in_order = !is_mapped_ && first == come_ && count > 0 && count <= all - come_ &&
                        last == (come_ + count == all);
  if (!in_order) {
    throw runtime_error(fmt::format("cannot map {} chunks of {} from chunk {} of {} on: {} are "
                                    "mapped",
                                    count, name_, first, all, come_),
                        kOtherBuild);
  }
  try {
    chunks_->map(come_, std::move(fds));
  } catch (...) {
    unmap();
    throw;
  }
  come_ += count;
  if (!last) return;
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
  come_ = 0;
}

void TagMemory::restore() {
  if (is_mapped_) return;
  if (!copy_.is_whole()) {
    throw runtime_error(fmt::format("{} cannot be brought back: it was on its way to host memory "
                                    "when the rank was lost",
                                    name_),
                        "start from a checkpoint");
  }
  unmap();  // what had come of it
  restored_ = device_.make_chunks(name_, bytes());
  is_proven_ = copy_.bring_back(device_, *restored_, *chunks_);
  is_mapped_ = has_content_ = true;
  arena_->set_mapped(true);
}

}  // namespace awex::attach
