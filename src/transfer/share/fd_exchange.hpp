#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "comm/job.hpp"
#include "transfer/share/fd_transport.hpp"

namespace awex {

/// How descriptors travel. kAuto tries pidfd_getfd and falls back to SCM_RIGHTS where the system
/// forbids it; the others force one way (tests).
enum class FdTransport : uint8_t { kAuto, kPidfd, kSocket };

/// Keeps `fds` open until `taker`, a rank on this host, has them; opens a socket if it asks for
/// one. `what` names them for errors. Not collective: the taker calls take_fds.
void hand_out_fds(Job& job, int taker, std::span<const int> fds, const std::string& what);

/// Takes the descriptors `numbers` of rank `giver`'s process, which calls hand_out_fds.
[[nodiscard]] std::vector<UniqueFd> take_fds(Job& job, int giver, std::span<const int32_t> numbers,
                                             const std::string& what,
                                             FdTransport transport = FdTransport::kAuto);

}  // namespace awex
