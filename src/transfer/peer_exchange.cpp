#include "transfer/peer_exchange.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "memory/cuda_check.hpp"
#include "memory/cuda_driver.hpp"
#include "memory/cuda_ranges.hpp"
#include "transfer/fd_exchange.hpp"
#include "transfer/grants.hpp"
#include "transfer/staging.hpp"

namespace awex {
namespace {

constexpr uint32_t kBuffers = Staging::kBuffers;
static_assert(kBuffers % 2 == 0, "a buffer's messages all go through one lane");

/// How often each buffer of a peer came to something. Wraps around.
using Counts = std::array<uint32_t, kBuffers>;

/// Signals of one peer, as they lie in a rank's staging memory.
struct Signals {
  Counts arrived{};  ///< Messages of the peer that are here.
  Counts granted{};  ///< Messages that may be written to the peer.
};

constexpr uint64_t kMostPeers = Staging::kSignalsBytes / sizeof(Signals);

/// What a rank offers the others.
struct StagingRecord {
  uint64_t bytes = 0;
  uint64_t chunk_bytes = 0;
  uint32_t chunk_count = 0;
  std::array<int32_t, kMaxChunks> fds{};
};

/// World ranks of the inference ranks, by role rank.
std::vector<int> inference_ranks(const Job& job) {
  std::vector<int> ranks;
  for (const auto& peer : job.peers()) {
    if (peer.role == Role::kInference) ranks.push_back(peer.rank);
  }
  return ranks;
}

StagingRecord offer(DeviceRange& range) {
  StagingRecord record;
  record.bytes = range.bytes();
  record.chunk_bytes = range.chunk_bytes();
  const auto fds = range.export_fds();
  record.chunk_count = narrow<uint32_t>(fds.size());
  std::copy(fds.begin(), fds.end(), record.fds.begin());
  return record;
}

/// Signals to write to, or to wait for on, a stream: in one call.
class SignalBatch {
 public:
  void write(std::byte* signal, uint32_t value) {
    auto& operation = operations_.emplace_back();
    operation.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    operation.writeValue.address = address(signal);
    operation.writeValue.value = value;
    // The default also orders it behind all that the stream has written before, for every device.
    operation.writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT;
  }

  void wait_for(std::byte* signal, uint32_t value) {
    auto& operation = operations_.emplace_back();
    operation.waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    operation.waitValue.address = address(signal);
    operation.waitValue.value = value;
    operation.waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;  // as differences: counts may wrap
  }

  void queue(cudaStream_t stream) {
    if (operations_.empty()) return;
    AWEX_CHECK(cuStreamBatchMemOp(stream, static_cast<unsigned>(operations_.size()),
                                  operations_.data(), 0),
               "queue {} signals between inference ranks", operations_.size());
    operations_.clear();
  }

 private:
  static CUdeviceptr address(std::byte* signal) { return reinterpret_cast<CUdeviceptr>(signal); }

  std::vector<CUstreamBatchMemOpParams> operations_;
};

class PeerExchange final : public Exchange {
 public:
  PeerExchange(Job& job, Device& device, Kernels& kernels)
      : job_(job),
        kernels_(kernels),
        me_(job.peers().at(static_cast<size_t>(job.rank())).role_rank),
        staging_(device),
        peers_(inference_ranks(job).size()) {
    if (peers_.size() > kMostPeers) {
      throw runtime_error(fmt::format("cannot exchange with {} inference ranks: there is room for "
                                      "the signals of {}",
                                      peers_.size(), kMostPeers),
                          "--exchange nccl has no such limit");
    }
    AWEX_CHECK(cudaMemset(staging_.buffer(0) + Staging::kSignalsOffset, 0, Staging::kSignalsBytes),
               "clear the signals of the exchange");
    AWEX_CHECK(cudaDeviceSynchronize(), "wait until the signals of the exchange are clear");
  }

  [[nodiscard]] DeviceRange& range() const { return staging_.range(); }

  void map(uint32_t peer, const CudaMemorySource& source, const StagingRecord& record,
           std::vector<UniqueFd> fds) {
    auto& mapped = peers_.at(peer).staging;
    mapped = make_cuda_import(source, fmt::format("messages to inference rank {}", peer),
                              record.bytes, record.chunk_bytes, MappedAccess::kReadWrite);
    mapped->map(std::move(fds));
  }

  void prepare(std::vector<MessageRound> rounds) override {
    grants_ = grants_of(rounds, kBuffers);
    Exchange::prepare(std::move(rounds));
  }

  void connect() override {}  // every peer's memory is mapped

  [[nodiscard]] std::byte* outbox(uint32_t peer, uint32_t turn) const override {
    return peers_.at(peer).staging->data() + turn % kBuffers * kMessageBufferBytes;
  }
  [[nodiscard]] const std::byte* inbox(uint32_t turn) const override {
    return staging_.buffer(turn % kBuffers);
  }

  void begin() override { grant(grants_.at_begin); }

  void open(size_t round) override {
    const auto& [turn, sends, receives] = rounds()[round];
    for (const auto& message : sends) {
      const uint32_t count = ++peers_[message.peer].sending[turn % kBuffers];
      sending_.wait_for(own(message.peer, &Signals::granted, turn), count);
    }
    sending_.queue(lane(send_lane(turn)));
  }

  void deliver(size_t round) override {
    const auto& [turn, sends, receives] = rounds()[round];
    for (const auto& message : sends) {
      const uint32_t count = peers_[message.peer].sending[turn % kBuffers];
      sending_.write(of(message.peer, &Signals::arrived, turn), count);
    }
    sending_.queue(lane(send_lane(turn)));
    for (const auto& message : receives) {
      const uint32_t count = ++peers_[message.peer].receiving[turn % kBuffers];
      receiving_.wait_for(own(message.peer, &Signals::arrived, turn), count);
    }
    receiving_.queue(lane(Lane::kReceive));
  }

  /// Queued with the waits of the next round, which there is: it has the granted messages.
  void close(size_t round) override { grant(grants_.after_round[round]); }

  void wait() override { kernels_.wait(describe_all(), job_.deadline(), job_); }
  [[nodiscard]] uint64_t staging_bytes() const override { return staging_.range().held_bytes(); }

 private:
  struct Mapped {
    std::unique_ptr<ImportedRange> staging;  ///< None of this rank itself.
    Counts sending{};                        ///< Messages to it that were queued.
    Counts receiving{};                      ///< Messages from it that are waited for.
    Counts granting{};                       ///< Messages from it that were granted.
  };

  [[nodiscard]] cudaStream_t lane(Lane lane) const {
    return static_cast<cudaStream_t>(kernels_.stream(lane));
  }

  static std::byte* signal(std::byte* staging, uint32_t peer, Counts Signals::*kind,
                           uint32_t turn) {
    auto* all = reinterpret_cast<Signals*>(staging + Staging::kSignalsOffset);
    return reinterpret_cast<std::byte*>(&(all[peer].*kind)[turn % kBuffers]);
  }
  /// This rank's signal about a peer.
  [[nodiscard]] std::byte* own(uint32_t peer, Counts Signals::*kind, uint32_t turn) const {
    return signal(staging_.buffer(0), peer, kind, turn);
  }
  /// A peer's signal about this rank.
  [[nodiscard]] std::byte* of(uint32_t peer, Counts Signals::*kind, uint32_t turn) const {
    return signal(peers_[peer].staging->data(), me_, kind, turn);
  }

  void grant(const std::vector<Grant>& grants) {
    for (const auto& [peer, buffer] : grants) {
      receiving_.write(of(peer, &Signals::granted, buffer), ++peers_[peer].granting[buffer]);
    }
  }

  Job& job_;
  Kernels& kernels_;
  uint32_t me_;  ///< Role rank.
  Staging staging_;
  std::vector<Mapped> peers_;  ///< By role rank.
  Grants grants_;
  SignalBatch sending_;    ///< To be queued on a lane of what is sent,
  SignalBatch receiving_;  ///< and on that of what is received.
};

/// All pairs of ranks in one order, so that none waits for another in a circle.
void map_all(Job& job, Device& device, const std::vector<StagingRecord>& records,
             PeerExchange& exchange) {
  const auto source = inspect_cuda_memory(device.identity().index, device.identity().name);
  const auto ranks = inference_ranks(job);
  for (uint32_t giver = 0; giver < ranks.size(); ++giver) {
    const auto& record = records.at(static_cast<size_t>(ranks[giver]));
    const auto fds = std::span(record.fds).first(record.chunk_count);
    const auto what = fmt::format("the message buffers of {}", job.describe(ranks[giver]));
    for (const int taker : ranks) {
      if (taker == ranks[giver]) continue;
      if (job.rank() == ranks[giver]) hand_out_fds(job, taker, fds, what);
      if (job.rank() != taker) continue;
      exchange.map(giver, source, record,
                   take_fds(job, ranks[giver], fds, what, FdTransport::kAuto));
    }
  }
}

}  // namespace

std::optional<std::string> find_unreachable_peer(Job& job, Device& device) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  int32_t obstacle = -1;  // a rank that this one cannot reach
  for (const auto& peer : job.peers()) {
    if (me.role == Role::kTrainer || peer.role == Role::kTrainer || peer.rank == me.rank) continue;
    const bool reached =
        peer.host == me.host && reaches_device(device.identity().index, peer.device);
    if (!reached && obstacle < 0) obstacle = peer.rank;
  }
  const auto all = job.all_gather_value(obstacle, "which GPUs reach each other");
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank] < 0) continue;
    const auto& other = job.peers().at(static_cast<size_t>(all[rank]));
    const auto& one = job.peers().at(rank);
    return fmt::format("{} cannot map memory of {}: {}", one.describe(), other.describe(),
                       one.host == other.host
                           ? "the one does not see the other's GPU, or no link joins them"
                           : "they are on different hosts");
  }
  return std::nullopt;
}

std::unique_ptr<Exchange> make_peer_exchange(Job& job, Device& device, Kernels& kernels) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  std::unique_ptr<PeerExchange> exchange;
  StagingRecord own;
  if (me.role == Role::kInference) {
    exchange = std::make_unique<PeerExchange>(job, device, kernels);
    own = offer(exchange->range());
  }
  const auto records = job.all_gather_value(own, "the swap of message buffers");
  if (exchange) map_all(job, device, records, *exchange);
  if (job.is_reporter()) {
    log::detail("messages between GPUs are written into the receivers' memory");
  }
  return exchange;
}

}  // namespace awex
