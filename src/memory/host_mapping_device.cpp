#include <cstring>

#include "memory/host_lent.hpp"
#include "memory/host_ranges.hpp"
#include "memory/mapping_device.hpp"

namespace awex {
namespace {

class HostMappingDevice final : public MappingDevice {
 public:
  [[nodiscard]] std::unique_ptr<MappedChunks> reserve(const std::string& name, uint64_t bytes,
                                                      uint64_t chunk_bytes) override {
    return make_host_mapping(name, bytes, chunk_bytes, MappedAccess::kReadWrite, pages_);
  }

  [[nodiscard]] std::unique_ptr<OwnedChunks> make_chunks(const std::string& name,
                                                         uint64_t bytes) override {
    return make_host_chunks(name, bytes, pages_);
  }

  void copy_in(std::byte* to, std::span<std::byte> from) override {
    std::memcpy(to, from.data(), from.size());
  }

  [[nodiscard]] Lending lend(const std::byte* address) override {
    return lend_host_memory(address);
  }

 private:
  HostPages pages_;
};

}  // namespace

std::unique_ptr<MappingDevice> make_host_mapping_device() {
  return std::make_unique<HostMappingDevice>();
}

}  // namespace awex
