#pragma once

#include <map>
#include <string>
#include <vector>

#include "cycle/observer.hpp"
#include "cycle/options.hpp"
#include "support/call_counts.hpp"

namespace awex::test {

/// What one rank called in one version of an update.
struct VersionCalls {
  std::map<std::string, CallCounts> by_phase;  ///< "offload trainer weights"; only where any.
  size_t open_descriptors = 0;                 ///< Of this process, at its end.

  friend bool operator==(const VersionCalls&, const VersionCalls&) = default;
};

/// Chunks of a rank's regions and of what it maps; 0 where it has none.
struct ChunkCounts {
  uint64_t weights = 0;
  uint64_t optimizer = 0;
  uint64_t kv_cache = 0;
  uint64_t mapped = 0;  ///< Of its trainer's weights, on an inference rank.
};

/// An update as the ledger saw it on this rank.
struct CountedUpdate {
  bool is_trainer = false;
  ChunkCounts chunks;
  std::vector<VersionCalls> versions;
};

inline constexpr uint64_t kCountedVersions = 4;

/// Options of an update of kCountedVersions, in which every region of both roles has its turn.
[[nodiscard]] Request counted_options(BackendKind backend, const std::string& model,
                                      uint64_t layers);

/// Runs an update of options.command.versions on the test's job, with half of its ranks trainers,
/// and counts this rank's calls. Throws the run's failure, on every rank. Collective.
[[nodiscard]] CountedUpdate count_update(const Request& options);

/// "offload trainer weights: {"fallocate": 3}; …" for failed checks.
[[nodiscard]] std::string describe(const std::map<std::string, CallCounts>& by_phase);

}  // namespace awex::test
