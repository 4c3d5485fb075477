#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attach/library/arena.hpp"
#include "attach/library/host_copy.hpp"
#include "base/unique_fd.hpp"
#include "engine/engine.hpp"
#include "memory/mapped_chunks.hpp"
#include "memory/mapping_device.hpp"
#include "memory/owned_chunks.hpp"
#include "memory/region.hpp"

namespace awex::attach {

/// A tag's memory as the engine's process has it: addresses for life, at which the rank's chunks
/// come and go, an arena that shares them out, and what brings a trainer's bytes back that were
/// away when the rank was lost: at every moment a chunk of a trainer's is mapped here or its host
/// copy is known, or both. Not thread safe, but for the arena.
class TagMemory {
 public:
  /// Reserves the addresses. Throws Error(kRuntime), also for sizes that cannot be. The device must
  /// outlive this.
  TagMemory(MappingDevice& device, Tag tag, uint64_t bytes, uint64_t chunk_bytes);

  [[nodiscard]] std::byte* data() const { return chunks_->data(); }
  [[nodiscard]] uint64_t bytes() const { return chunks_->chunking().bytes; }
  /// May outlive this.
  [[nodiscard]] const std::shared_ptr<Arena>& arena() const { return arena_; }
  /// All of it, for the engine to use.
  [[nodiscard]] bool is_mapped() const { return is_mapped_; }
  /// Whether what was mapped had a content that is defined.
  [[nodiscard]] bool has_content() const { return has_content_; }

  /// Maps the rank's chunks from `first` on, but for those that have not been let go since they
  /// were mapped; `last` where all have come. After a throw some of these may be mapped. Throws
  /// Error(kRuntime).
  void map(uint64_t first, std::vector<UniqueFd> fds, bool last, bool has_content);
  /// Where nothing is mapped: maps memory of this process's own, of one chunk and at the addresses
  /// of all, so that what is written at one place is read at others; until `unmap`. After a throw
  /// nothing is mapped. Throws Error(kRuntime).
  void map_placeholder();
  /// Whether that is what is mapped.
  [[nodiscard]] bool has_placeholder() const { return has_placeholder_; }
  /// Unmaps whatever is mapped.
  void unmap();

  /// A trainer's memory is the engine's no more. It stays mapped, but for what is let go; copies of
  /// before count no more. Nothing where it is not mapped.
  void leave();
  /// Chunks from `first` on are in host memory (see HostCopy::add): lets them go.
  void let_go(uint64_t first, std::vector<UniqueFd> fds, std::vector<ChunkDigests> hold);
  /// Whether every chunk is mapped here, or in host memory.
  [[nodiscard]] bool is_safe() const;
  /// Brings what is not mapped back from host memory, into memory of this process's own; what is
  /// mapped stays. All or nothing. Throws Error(kRuntime) where it is not safe, or
  /// Error(kMismatch).
  void restore();
  /// False for what was restored and could not be compared.
  [[nodiscard]] bool is_proven() const { return is_proven_; }

 private:
  [[nodiscard]] uint64_t chunks() const { return chunks_->chunking().count(); }
  /// The first chunk that is not mapped.
  [[nodiscard]] std::optional<uint64_t> find_unmapped() const;

  MappingDevice& device_;
  std::string name_;
  std::unique_ptr<OwnedChunks> restored_;  ///< This process's own, mapped until they are released.
  std::unique_ptr<MappedChunks> chunks_;
  std::shared_ptr<Arena> arena_;
  HostCopy copy_;
  bool is_mapped_ = false;
  bool has_placeholder_ = false;
  bool has_content_ = false;
  bool is_proven_ = true;
};

}  // namespace awex::attach
