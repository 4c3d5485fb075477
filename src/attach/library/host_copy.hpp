#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "engine/engine.hpp"
#include "memory/chunking.hpp"
#include "memory/host_mapping.hpp"
#include "memory/mapped_chunks.hpp"
#include "memory/mapping_device.hpp"

namespace awex::attach {

/// The host memory that a tag's bytes have gone to: the rank's, which outlives it as long as its
/// descriptors are here. Not thread safe.
class HostCopy {
 public:
  /// Descriptors of chunks from `first` on, anew from 0 on; a run-time error where they are not the
  /// next ones of `count` in all.
  void add(uint64_t first, std::vector<UniqueFd> fds, uint64_t count);
  /// All of the bytes are there now.
  void complete(std::vector<DigestedRun> runs);
  /// It is about to be written.
  void forget() { is_whole_ = false; }
  [[nodiscard]] bool is_whole() const { return is_whole_; }

  /// Compares the bytes with what left the device, and puts them into chunks of `owner`, which are
  /// taken and mapped for that: all or none. Throws Error(kMismatch) that names the first wrong
  /// tensor. Returns whether they were compared.
  bool bring_back(MappingDevice& device, OwnedChunks& owner, MappedChunks& mapped) const;

 private:
  [[nodiscard]] std::vector<HostMapping> map(const Chunking& chunking) const;
  void check(const Chunking& chunking, const std::vector<HostMapping>& copies) const;

  std::vector<UniqueFd> fds_;
  std::vector<DigestedRun> runs_;
  bool is_whole_ = false;
};

}  // namespace awex::attach
