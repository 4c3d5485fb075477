#pragma once

#include <atomic>
#include <cstdint>

namespace awex::attach {

/// What a trainer's library tells its rank without a message: a page that both map, the rank's.
/// It outlives the engine, so the rank knows in which state it died.
struct ControlPage {
  static constexpr uint32_t kMagic = 0x61776578;
  uint32_t magic = kMagic;
  std::atomic<uint32_t> writing{0};  ///< 1 between awex_writing and awex_consistent.
  std::atomic<uint64_t> steps{0};    ///< Training steps since the job began.
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace awex::attach
