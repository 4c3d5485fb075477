#include "transfer/move/nccl_exchange.hpp"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "memory/cuda_check.hpp"
#include "memory/cuda_owners.hpp"
#include "transfer/move/rounds_in_flight.hpp"
#include "transfer/move/staging.hpp"

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

class NcclExchange final : public Exchange {
 public:
  NcclExchange(Job& job, Device& device, Kernels& kernels, const ncclUniqueId& id, int rank)
      : Exchange(ranks_of(job.peers(), Role::kInference)),
        job_(job),
        kernels_(kernels),
        staging_(device),
        rank_(rank),
        in_flight_(job, *this) {
    join(id);
  }

  void connect() override {
    MessageRound first;
    for (const auto& round : rounds()) {
      add_missing(first.sends, round.sends);
      add_missing(first.receives, round.receives);
    }
    const auto others = [this] { return ranks_met(0, rounds().size()); };
    const auto what = describe(others());
    exchange(first, what);
    const auto is_done_with_all = [&] {
      return is_settled(what) && is_done(cudaStreamQuery(stream_.get()), "cudaStreamQuery", what);
    };
    job_.wait_for(is_done_with_all, [&] { return Late{others(), "exchanged first messages"}; });
  }

  [[nodiscard]] std::byte* outbox(uint32_t turn) const override {
    return staging_.buffer(turn % kBuffers);
  }
  [[nodiscard]] const std::byte* inbox(uint32_t turn) const override { return in(turn); }

  void prepare(std::vector<MessageRound> rounds) override {
    Exchange::prepare(std::move(rounds));
    for (size_t i = 0; i < this->rounds().size(); ++i)
      descriptions_.push_back(describe(ranks_met(i, i + 1)));
  }

  void open(size_t round) override {
    in_flight_.make_room(round, still_well());
    const uint32_t turn = rounds().at(round).turn;
    exchanged_.at(turn % kBuffers).hold_back(native(Stream::kSend));
  }

  void deliver(size_t round) override {
    const auto& messages = rounds().at(round);
    const uint32_t buffer = messages.turn % kBuffers;
    packed_.record(native(Stream::kSend));
    packed_.hold_back(stream_.get());
    unpacked_.at(buffer).hold_back(stream_.get());
    exchange(messages, descriptions_.at(round));
    exchanged_.at(buffer).record(stream_.get());
    exchanged_.at(buffer).hold_back(native(Stream::kReceive));
    in_flight_.record_sent(round, stream_.get());
  }

  void close(size_t round) override {
    const uint32_t turn = rounds().at(round).turn;
    unpacked_.at(turn % kBuffers).record(native(Stream::kReceive));
    in_flight_.record_received(round, native(Stream::kReceive));
  }

  void wait() override { in_flight_.wait_for_all(native(Stream::kMain), still_well()); }

  void abort(const Deadline& deadline) override {
    communicator_.reset();
    const auto are_idle = [this] {
      const std::array streams{stream_.get(), native(Stream::kSend), native(Stream::kReceive),
                               native(Stream::kMain)};
      return std::all_of(streams.begin(), streams.end(), [](cudaStream_t stream) {
        return is_done(cudaStreamQuery(stream), "cudaStreamQuery", kWhat);
      });
    };
    NoMonitor nobody;
    wait_until(are_idle, fmt::format("the end of {}", kWhat), deadline, nobody);
  }

  void rebuild() override {
    ncclUniqueId id{};
    const std::span<ncclUniqueId> one(&id, 1);
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    if (rank_ == 0) {
      AWEX_CHECK(ncclGetUniqueId(&id), "make NCCL's unique id");
      for (const int other : inference_ranks()) {
        if (other != job_.rank()) outgoing.push_back({other, std::as_bytes(one)});
      }
    } else {
      incoming.push_back({inference_ranks().front(), std::as_writable_bytes(one)});
    }
    job_.exchange(outgoing, incoming, "swapping NCCL's unique id");
    join(id);
    connect();
  }

  [[nodiscard]] uint64_t staging_bytes() const override { return staging_.range().held_bytes(); }

 private:
  static constexpr uint32_t kBuffers = Staging::kBuffers / 2;
  static constexpr const char* kWhat = "the exchange of weights";

  void join(const ncclUniqueId& id) {
    const auto ranks = static_cast<int>(inference_ranks().size());
    communicator_.emplace(id, ranks, rank_);
    settle(fmt::format("joining NCCL's communicator of {} inference ranks", ranks));
  }

  [[nodiscard]] const Communicator& communicator() const {
    if (communicator_) return *communicator_;
    throw runtime_error("NCCL's communicator was aborted and not made anew",
                        "this is a fault of awex-colocate: please report it");
  }
  [[nodiscard]] bool is_settled(const std::string& what) const {
    return communicator().is_settled(what);
  }

  [[nodiscard]] cudaStream_t native(Stream stream) const {
    return static_cast<cudaStream_t>(kernels_.stream(stream));
  }
  [[nodiscard]] std::byte* in(uint32_t turn) const {
    return staging_.buffer(kBuffers + turn % kBuffers);
  }

  /// A short message for each peer that has none yet.
  static void add_missing(std::vector<Message>& messages, const std::vector<Message>& wanted) {
    for (const auto& one : wanted) {
      const bool is_there = std::any_of(messages.begin(), messages.end(),
                                        [&](const Message& m) { return m.peer == one.peer; });
      if (!is_there) messages.push_back({one.peer, messages.size(), 1});
    }
  }

  /// Queues one group on the exchange's stream.
  void exchange(const MessageRound& round, const std::string& what) {
    if (round.sends.empty() && round.receives.empty()) return;
    AWEX_CHECK(ncclGroupStart(), "begin {}", what);
    const auto queued = queue(round);
    const auto ended = ncclGroupEnd();  // also after a failure: groups nest
    require(queued, "ncclSend or ncclRecv", "queue " + what);
    require(ended, "ncclGroupEnd", "launch " + what);
    settle("launching " + what);
  }

  [[nodiscard]] ncclResult_t queue(const MessageRound& round) {
    using Result = CallResult<ncclResult_t>;
    ncclResult_t result = ncclSuccess;
    for (size_t i = 0; i < round.receives.size() && Result::ok(result); ++i) {
      const auto& [peer, offset, bytes] = round.receives[i];
      result = ncclRecv(in(round.turn) + offset, bytes, ncclUint8, static_cast<int>(peer),
                        communicator().get(), stream_.get());
    }
    for (size_t i = 0; i < round.sends.size() && Result::ok(result); ++i) {
      const auto& [peer, offset, bytes] = round.sends[i];
      result = ncclSend(outbox(round.turn) + offset, bytes, ncclUint8, static_cast<int>(peer),
                        communicator().get(), stream_.get());
    }
    return result;
  }

  void settle(const std::string& what) {
    wait_until([&] { return is_settled(what); }, what, job_.deadline(), job_);
  }

  [[nodiscard]] RoundsInFlight::Check still_well() const {
    return [this] { return is_settled(kWhat); };
  }

  static std::string describe(const std::vector<int>& others) {
    return fmt::format("the exchange with rank{} {}", others.size() == 1 ? "" : "s",
                       fmt::join(others, ", "));
  }

  Job& job_;
  Kernels& kernels_;
  Staging staging_;
  CudaStream stream_{StreamPriority::kHigh};
  int rank_;                                  ///< In the communicator.
  std::optional<Communicator> communicator_;  ///< Aborted before the stream is waited for.
  std::vector<std::string> descriptions_;     ///< By round.
  CudaEvent packed_;
  std::array<CudaEvent, kBuffers> exchanged_;  ///< By buffer: both directions of its last round.
  std::array<CudaEvent, kBuffers> unpacked_;
  RoundsInFlight in_flight_;
};

/// The unique id that inference's rank 0 (world rank `root`) makes, on every rank. Collective.
ncclUniqueId share_unique_id(Job& job, int root) {
  ncclUniqueId id{};
  if (job.rank() == root) AWEX_CHECK(ncclGetUniqueId(&id), "make NCCL's unique id");
  return job.all_gather_value(id, "swapping NCCL's unique id").at(static_cast<size_t>(root));
}

}  // namespace

std::unique_ptr<Exchange> make_nccl_exchange(Job& job, Device& device, Kernels& kernels) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  const auto ranks = ranks_of(job.peers(), Role::kInference);
  const auto id = share_unique_id(job, ranks.front());
  if (me.role != Role::kInference) return nullptr;
  AWEX_CHECK(cudaSetDevice(device.identity().index), "open gpu {}", device.identity().index);
  // NCCL's kernels have one. Were it first made for one of them, it would wait for those that run.
  constexpr size_t kStackBytes = 1024;
  AWEX_CHECK(cudaDeviceSetLimit(cudaLimitStackSize, kStackBytes), "make a stack for NCCL");
  return std::make_unique<NcclExchange>(job, device, kernels, id, static_cast<int>(me.role_rank));
}

void let_nccl_share_gpu(int rank) {
  const auto host_id = fmt::format("awex-colocate-{}", rank);
  if (::setenv("NCCL_HOSTID", host_id.c_str(), 1) != 0) {
    throw errno_error("name a host identity for NCCL (NCCL_HOSTID)", "setenv", errno);
  }
}

}  // namespace awex
