#include "memory/owned_chunks.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace awex {

void OwnedChunks::take(uint64_t first, uint64_t count) {
  expect(first, count, false);
  do_take(first, count);
  note(first, count, true);
}

void OwnedChunks::release(uint64_t first, uint64_t count) {
  expect(first, count, true);
  note(first, count, false);
  do_release(first, count);
}

uint64_t OwnedChunks::held_bytes() const {
  uint64_t bytes = 0;
  for (uint64_t chunk = 0; chunk < taken_.size(); ++chunk) {
    if (taken_[chunk]) bytes += chunking_.held_bytes(chunk, 1);
  }
  return bytes;
}

std::vector<int> OwnedChunks::export_fds() {
  expect(0, taken_.size(), true);
  std::vector<int> fds;
  for (uint64_t chunk = 0; chunk < taken_.size(); ++chunk) fds.push_back(do_export(chunk));
  return fds;
}

int OwnedChunks::export_fd(uint64_t chunk) {
  expect(chunk, 1, true);
  return do_export(chunk);
}

void OwnedChunks::expect(uint64_t first, uint64_t count, bool taken) const {
  for (uint64_t chunk = first; chunk < first + count; ++chunk) {
    if (chunk < taken_.size() && taken_[chunk] == taken) continue;
    throw runtime_error(
        fmt::format("{} is not {}", chunking_.describe(chunk, 1), taken ? "taken" : "free"),
        "this is a fault of awex-colocate: please report it");
  }
}

void OwnedChunks::note(uint64_t first, uint64_t count, bool taken) noexcept {
  std::fill_n(taken_.begin() + static_cast<ptrdiff_t>(first), count, taken);
}

}  // namespace awex
