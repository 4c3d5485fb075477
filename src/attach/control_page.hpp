#pragma once

#include <atomic>
#include <cstdint>

namespace awex::attach {

/// What a trainer's library and its rank tell each other without a message: a page that both map,
/// the rank's. It outlives the engine, so the rank knows in which state it died, and it outlives
/// the rank.
struct ControlPage {
  static constexpr uint32_t kMagic = 0x61776578;
  uint32_t magic = kMagic;
  std::atomic<uint32_t> writing{0};  ///< 1 between awex_writing and awex_consistent.
  std::atomic<uint64_t> steps{0};    ///< Training steps since the job began.
  std::atomic<uint64_t> engine{0};   ///< The number of the engine that was let in last.
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace awex::attach
