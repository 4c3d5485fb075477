#include "memory/device.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace awex {

const char* backend_name(BackendKind kind) {
  switch (kind) {
    case BackendKind::kHost:
      return "host";
    case BackendKind::kCuda:
      return "cuda";
  }
  return "unknown";
}

void DeviceRange::take_chunks(uint64_t first, uint64_t count) {
  expect(first, count, false);
  do_take(first, count);
  note(first, count, true);
}

void DeviceRange::release_chunks(uint64_t first, uint64_t count) {
  expect(first, count, true);
  do_detach(first, count);
  note(first, count, false);
  do_free(first, count);
}

uint64_t DeviceRange::held_bytes() const {
  uint64_t bytes = 0;
  for (uint64_t chunk = 0; chunk < chunks(); ++chunk) {
    if (taken_[chunk]) bytes += chunking_.held_bytes(chunk, 1);
  }
  return bytes;
}

std::vector<int> DeviceRange::export_fds() {
  expect(0, chunks(), true);
  return do_export();
}

void DeviceRange::expect(uint64_t first, uint64_t count, bool taken) const {
  for (uint64_t chunk = first; chunk < first + count; ++chunk) {
    if (chunk < chunks() && taken_[chunk] == taken) continue;
    throw runtime_error(
        fmt::format("{} is not {}", chunking_.describe(chunk, 1), taken ? "taken" : "free"),
        "this is a fault of awex-colocate: please report it");
  }
}

void ImportedRange::map(std::vector<UniqueFd> fds) {
  const auto attempt = fmt::format("cannot map \"{}\"", chunking_.name);
  if (mapped_) {
    throw runtime_error(attempt + ": it is mapped already, and nothing maps over a mapping",
                        "this is a fault of awex-colocate: please report it");
  }
  if (fds.size() != chunking_.count()) {
    throw runtime_error(fmt::format("{}: got {} descriptors for {} chunks", attempt, fds.size(),
                                    chunking_.count()));
  }
  do_map(std::move(fds));
  mapped_ = true;
}

void ImportedRange::unmap() {
  if (!mapped_) return;
  do_unmap();
  mapped_ = false;
}

void DeviceRange::note(uint64_t first, uint64_t count, bool taken) noexcept {
  std::fill_n(taken_.begin() + static_cast<ptrdiff_t>(first), count, taken);
}

}  // namespace awex
