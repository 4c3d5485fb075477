#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "memory/device.hpp"

namespace awex::test {

/// The host device, but for host blocks: those come from `allocate`, which is given the device and
/// the bytes and may be called from several threads.
class HostBlocksDevice final : public Device {
 public:
  using Allocate = std::function<std::unique_ptr<HostBlock>(Device&, uint64_t bytes)>;

  explicit HostBlocksDevice(Allocate allocate)
      : allocate_(std::move(allocate)), host_(make_host_device(0, 1)) {}

  [[nodiscard]] BackendKind kind() const override { return BackendKind::kHost; }
  [[nodiscard]] const DeviceIdentity& identity() const override { return host_->identity(); }
  [[nodiscard]] std::unique_ptr<OwnedChunks> make_chunks(const std::string& name,
                                                         uint64_t bytes) override {
    return host_->make_chunks(name, bytes);
  }
  [[nodiscard]] std::unique_ptr<MappedChunks> reserve_mapping(const std::string& name,
                                                              uint64_t bytes, uint64_t chunk_bytes,
                                                              MappedAccess access) override {
    return host_->reserve_mapping(name, bytes, chunk_bytes, access);
  }
  [[nodiscard]] std::unique_ptr<OpenedBlock> open_lent(const std::string& name,
                                                       const LentBlock& block,
                                                       const UniqueFd& fd) override {
    return host_->open_lent(name, block, fd);
  }
  [[nodiscard]] std::unique_ptr<HostBlock> allocate_host(uint64_t bytes,
                                                         HostSharing /*sharing*/) override {
    return allocate_(*host_, bytes);
  }
  [[nodiscard]] std::unique_ptr<CopyQueue> make_queue() override { return host_->make_queue(); }
  [[nodiscard]] DeviceMemory memory() const override { return host_->memory(); }

 private:
  Allocate allocate_;
  std::unique_ptr<Device> host_;
};

}  // namespace awex::test
