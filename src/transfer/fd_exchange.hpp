#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/fixed_text.hpp"
#include "base/unique_fd.hpp"
#include "comm/job.hpp"
#include "transfer/fd_transport.hpp"

namespace awex {

/// How descriptors travel. kAuto tries pidfd_getfd and falls back to SCM_RIGHTS where the system
/// forbids it; the others force one way (tests).
enum class FdTransport : uint8_t { kAuto, kPidfd, kSocket };

/// Where a rank's descriptors are to be had: plain data, known to those who want them.
struct FdOffer {
  int32_t rank = 0;
  int32_t pid = 0;
  FixedText<64> socket{};  ///< Abstract socket for SCM_RIGHTS.
};

/// Keeps `fds` open until `taker`, a rank on this host, has them. `what` names them for errors. Not
/// collective: the taker calls take_fds.
void hand_out_fds(Job& job, int taker, FdSocket& socket, std::span<const int> fds,
                  const std::string& what);

/// Takes the descriptors `numbers` of the offering rank's process. The offering rank calls
/// hand_out_fds.
[[nodiscard]] std::vector<UniqueFd> take_fds(Job& job, const FdOffer& offer,
                                             std::span<const int32_t> numbers,
                                             const std::string& what,
                                             FdTransport transport = FdTransport::kAuto);

}  // namespace awex
