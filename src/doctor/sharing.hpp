#pragma once

#include "comm/job.hpp"
#include "doctor/finding.hpp"
#include "memory/device.hpp"

namespace awex {

/// What trying to share memory has found, at the rank that takes it.
struct SharingFindings {
  Finding pidfd;
  Finding socket;
  Finding memory;
  Finding legacy_ipc;
};

/// With whom a rank tries.
struct SharingPartners {
  int giver = -1;  ///< Whose memory this rank takes; -1: nobody's. May be this rank itself.
  int taker = -1;  ///< Who takes this rank's.
};

/// Really shares memory of `device` between ranks as an update does: descriptors by pidfd_getfd and
/// by SCM_RIGHTS, mapped and read; on a GPU a legacy IPC handle as well. No try takes longer than
/// `longest`. Throws only what ends the job. Collective over all ranks.
[[nodiscard]] SharingFindings try_sharing(Job& job, Device& device, const SharingPartners& partners,
                                          Seconds longest);

/// What two ways of handing descriptors over have found, given their errors: one of them suffices.
/// Pure.
[[nodiscard]] std::pair<Finding, Finding> judge_ways(const std::string& pidfd_error,
                                                     const std::string& socket_error);

}  // namespace awex
