#pragma once

#include <functional>
#include <string>

#include "base/units.hpp"
#include "base/wait.hpp"
#include "serve/protocol.hpp"

namespace awex {

/// Asks the job that serves at `directory` and returns its kDone event; others go to `hear`, which
/// may be null. Waits up to `patience` for a job to come to that directory, then throws a request
/// error that says what is there. Throws Error(kPeerLost) when the job ends without an answer,
/// Error(kDeadline) when it lives but its door says nothing for 30 s or its rank 0 is stopped for
/// 10 s, and what `monitor` throws, which is polled at least every 10 ms.
[[nodiscard]] Event ask_job(const std::string& directory, const ClientRequest& request,
                            Seconds patience, const std::function<void(const Event&)>& hear,
                            WaitMonitor& monitor);

}  // namespace awex
