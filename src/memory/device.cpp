#include "memory/device.hpp"

#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"

namespace awex {
namespace {

/// Lets chunks go on the way out of a failure, which is what is told.
void give_up(OwnedChunks& owned, uint64_t first, uint64_t count) {
  try {
    owned.release(first, count);
  } catch (const Error& error) {
    log::detail(error.what());
  }
}

}  // namespace

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
  owned_->take(first, count);
  try {
    mapped_->map(*owned_, first, count);
  } catch (...) {
    give_up(*owned_, first, count);
    throw;
  }
}

void DeviceRange::release_chunks(uint64_t first, uint64_t count) {
  owned_->expect_taken(first, count);
  mapped_->unmap(first, count);
  owned_->release(first, count);
}

std::unique_ptr<DeviceRange> Device::reserve(const std::string& name, uint64_t bytes) {
  auto owned = make_chunks(name, bytes);
  const uint64_t chunk_bytes = owned->chunking().chunk_bytes;
  return std::make_unique<DeviceRange>(
      std::move(owned), reserve_mapping(name, bytes, chunk_bytes, MappedAccess::kReadWrite));
}

}  // namespace awex
