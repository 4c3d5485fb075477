#include "transfer/nccl_exchange.hpp"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <vector>

#include "memory/cuda_check.hpp"

namespace awex {

/// Reads results of NCCL for AWEX_CHECK. A call of a non-blocking communicator that is under way
/// has not failed: its end shows in the communicator's asynchronous error.
template <>
struct CallResult<ncclResult_t> {
  static bool ok(ncclResult_t code) { return code == ncclSuccess || code == ncclInProgress; }
  static const char* symbol(ncclResult_t code) {
    switch (code) {
      case ncclSuccess:
        return "ncclSuccess";
      case ncclUnhandledCudaError:
        return "ncclUnhandledCudaError";
      case ncclSystemError:
        return "ncclSystemError";
      case ncclInternalError:
        return "ncclInternalError";
      case ncclInvalidArgument:
        return "ncclInvalidArgument";
      case ncclInvalidUsage:
        return "ncclInvalidUsage";
      case ncclRemoteError:
        return "ncclRemoteError";
      case ncclInProgress:
        return "ncclInProgress";
      case ncclNumResults:
        break;
    }
    return "unknown ncclResult_t";
  }
  /// "ncclSystemError (2): unhandled system error (run with NCCL_DEBUG=WARN for details)" and
  /// NCCL's own last words.
  static std::string describe(ncclResult_t code) {
    const std::string last_error = ncclGetLastError(nullptr);
    return fmt::format("{} ({}): {}{}{}", symbol(code), static_cast<int>(code),
                       ncclGetErrorString(code), last_error.empty() ? "" : ": ", last_error);
  }
};

namespace {

/// As AWEX_CHECK, for a result that could not be checked at once.
void require(ncclResult_t result, const char* call, const std::string& attempt) {
  if (CallResult<ncclResult_t>::ok(result)) return;
  throw_failed_call(attempt, call, CallResult<ncclResult_t>::describe(result));
}

/// Owns a communicator.
class Communicator {
 public:
  /// Joins without blocking; `poll_setup` tells when it is complete.
  Communicator(const ncclUniqueId& id, int ranks, int rank) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const auto result = ncclCommInitRankConfig(&communicator_, ranks, id, rank, &config);
    if (CallResult<ncclResult_t>::ok(result)) return;
    const auto cause = CallResult<ncclResult_t>::describe(result);
    abort();
    throw_failed_call(fmt::format("join NCCL's communicator as rank {} of {}", rank, ranks),
                      "ncclCommInitRankConfig", cause);
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  Communicator(Communicator&&) = delete;
  Communicator& operator=(Communicator&&) = delete;
  ~Communicator() { abort(); }

  [[nodiscard]] ncclComm_t get() const { return communicator_; }

  /// Whether nothing is being set up or launched any more. Throws the asynchronous error.
  [[nodiscard]] bool is_settled(const std::string& what) const {
    ncclResult_t state = ncclSuccess;
    AWEX_CHECK(ncclCommGetAsyncError(communicator_, &state), "ask NCCL about {}", what);
    require(state, "ncclCommGetAsyncError", "finish " + what);
    return state == ncclSuccess;
  }

 private:
  /// Unlike an orderly end it waits for no peer; and with nothing in flight it is one.
  void abort() {
    if (communicator_ != nullptr) ncclCommAbort(communicator_);
  }

  ncclComm_t communicator_ = nullptr;
};

/// "inference ranks 0, 2" of the peers of a round.
std::string name_peers(std::span<const Message> sends, std::span<const Message> receives) {
  std::set<uint32_t> peers;
  for (const auto& message : sends) peers.insert(message.peer);
  for (const auto& message : receives) peers.insert(message.peer);
  return fmt::format("inference rank{} {}", peers.size() == 1 ? "" : "s", fmt::join(peers, ", "));
}

class NcclExchange final : public Exchange {
 public:
  NcclExchange(Job& job, Kernels& kernels, const ncclUniqueId& id, int ranks, int rank)
      : job_(job),
        stream_(static_cast<cudaStream_t>(kernels.stream())),
        communicator_(id, ranks, rank) {
    settle(fmt::format("joining NCCL's communicator of {} inference ranks", ranks));
  }

  void round(std::span<const Message> sends, std::span<const Message> receives) override {
    if (sends.empty() && receives.empty()) return;
    const auto what = "the exchange with " + name_peers(sends, receives);
    AWEX_CHECK(ncclGroupStart(), "begin {}", what);
    const auto queued = queue(sends, receives);
    const auto ended = ncclGroupEnd();  // also after a failure: groups nest
    require(queued, "ncclSend or ncclRecv", "queue " + what);
    require(ended, "ncclGroupEnd", "launch " + what);
    settle("launching " + what);
    last_round_ = what;
  }

  void wait() override {
    const auto what = last_round_.empty() ? "the device's work" : last_round_;
    const auto is_idle = [&] {
      const bool settled = communicator_.is_settled(what);
      return settled && is_done(cudaStreamQuery(stream_), "cudaStreamQuery", what);
    };
    wait_until(is_idle, what, job_.deadline(), job_);
  }

 private:
  void settle(const std::string& what) {
    wait_until([&] { return communicator_.is_settled(what); }, what, job_.deadline(), job_);
  }

  [[nodiscard]] ncclResult_t queue(std::span<const Message> sends,
                                   std::span<const Message> receives) {
    using Result = CallResult<ncclResult_t>;
    ncclResult_t result = ncclSuccess;
    for (size_t i = 0; i < receives.size() && Result::ok(result); ++i) {
      const auto& message = receives[i];
      result = ncclRecv(message.data, message.bytes, ncclUint8, static_cast<int>(message.peer),
                        communicator_.get(), stream_);
    }
    for (size_t i = 0; i < sends.size() && Result::ok(result); ++i) {
      const auto& message = sends[i];
      result = ncclSend(message.data, message.bytes, ncclUint8, static_cast<int>(message.peer),
                        communicator_.get(), stream_);
    }
    return result;
  }

  Job& job_;
  cudaStream_t stream_;
  Communicator communicator_;
  std::string last_round_;
};

/// The exchange of a single inference rank.
class NoExchange final : public Exchange {
 public:
  NoExchange(Job& job, Kernels& kernels) : job_(job), kernels_(kernels) {}

  void round(std::span<const Message> sends, std::span<const Message> receives) override {
    if (sends.empty() && receives.empty()) return;
    throw runtime_error("a single inference rank has nobody to exchange " +
                            fmt::format("{} messages with", sends.size() + receives.size()),
                        "this is a fault of awex-colocate: please report it");
  }

  void wait() override { kernels_.wait("the device's work", job_.deadline(), job_); }

 private:
  Job& job_;
  Kernels& kernels_;
};

/// The unique id that inference's rank 0 (world rank `root`) makes, on every rank. Collective.
ncclUniqueId share_unique_id(Job& job, int root) {
  ncclUniqueId id{};
  if (job.rank() == root) AWEX_CHECK(ncclGetUniqueId(&id), "make NCCL's unique id");
  return job.all_gather_value(id, "swapping NCCL's unique id").at(static_cast<size_t>(root));
}

}  // namespace

std::unique_ptr<Exchange> make_nccl_exchange(Job& job, Device& device, Kernels& kernels) {
  const auto& peers = job.peers();
  const auto& me = peers.at(static_cast<size_t>(job.rank()));
  const auto is_inference = [](const Peer& peer) { return peer.role == Role::kInference; };
  const auto ranks = std::count_if(peers.begin(), peers.end(), is_inference);
  if (ranks <= 1) {
    return is_inference(me) ? std::make_unique<NoExchange>(job, kernels) : nullptr;
  }
  const auto root = std::find_if(peers.begin(), peers.end(), is_inference)->rank;
  const auto id = share_unique_id(job, root);
  if (!is_inference(me)) return nullptr;
  AWEX_CHECK(cudaSetDevice(device.identity().index), "open gpu {}", device.identity().index);
  return std::make_unique<NcclExchange>(job, kernels, id, static_cast<int>(ranks),
                                        static_cast<int>(me.role_rank));
}

void let_nccl_share_gpu(int rank) {
  const auto host_id = fmt::format("awex-colocate-{}", rank);
  if (::setenv("NCCL_HOSTID", host_id.c_str(), 1) != 0) {
    throw errno_error("name a host identity for NCCL (NCCL_HOSTID)", "setenv", errno);
  }
}

}  // namespace awex
