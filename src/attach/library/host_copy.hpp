#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/unique_fd.hpp"
#include "engine/engine.hpp"
#include "memory/chunking.hpp"
#include "memory/host_mapping.hpp"
#include "memory/mapped_chunks.hpp"
#include "memory/mapping_device.hpp"

namespace awex::attach {

/// The host memory that a tag's bytes go to, chunk by chunk: the rank's, which outlives it as long
/// as its descriptors are here. Not thread safe.
class HostCopy {
 public:
  explicit HostCopy(Chunking chunking);

  /// Chunks from `first` on are there now, and hold what `hold` says of each: in the memory of
  /// `fds`; where that is empty, in that of the ones that came before. All or none; throws run-time
  /// errors for others than the tag has, for runs that lie elsewhere, and for files that are not as
  /// large as the chunks.
  void add(uint64_t first, std::vector<UniqueFd> fds, std::vector<ChunkDigests> hold);
  /// It is about to be written.
  void forget();
  [[nodiscard]] bool has(uint64_t chunk) const { return chunks_.at(chunk).is_there; }

  /// Puts those chunks that are not mapped into memory of `owner`, which is taken and mapped for
  /// that, once they are compared with what left the device, where it is known what that was: all
  /// or none. Throws Error(kMismatch) that names the first wrong tensor. Returns whether all were
  /// compared.
  bool bring_back(MappingDevice& device, OwnedChunks& owner, MappedChunks& mapped) const;

 private:
  struct Chunk {
    UniqueFd fd;
    bool is_there = false;
    ChunkDigests holds;
  };

  struct Missing {
    uint64_t chunk = 0;
    HostMapping copy;
  };

  void expect_in(uint64_t chunk, const ChunkDigests& holds) const;
  [[nodiscard]] HostMapping map(uint64_t chunk, const UniqueFd& fd) const;
  [[nodiscard]] bool check(std::span<const Missing> missing) const;

  Chunking chunking_;
  std::vector<Chunk> chunks_;
};

}  // namespace awex::attach
