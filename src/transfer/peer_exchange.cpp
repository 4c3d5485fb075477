#include "transfer/peer_exchange.hpp"

#include <cuda_runtime_api.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "memory/cuda_check.hpp"
#include "memory/cuda_owners.hpp"
#include "memory/cuda_ranges.hpp"
#include "transfer/cuda_signals.hpp"
#include "transfer/fd_exchange.hpp"
#include "transfer/grants.hpp"
#include "transfer/offered_range.hpp"
#include "transfer/rounds_in_flight.hpp"
#include "transfer/staging.hpp"

namespace awex {
namespace {

constexpr uint32_t kBuffers = Staging::kBuffers;
static_assert(kBuffers % kLanesADirection == 0, "a buffer's messages all go through one lane");

/// By buffer: how far its messages are, as signal_value; grows for ever and wraps around.
using Progress = std::array<uint32_t, kBuffers>;

/// Signals of one peer, as they lie in a rank's staging memory.
struct Signals {
  Progress arrived{};  ///< The peer's last message that is here.
  Progress granted{};  ///< The last message that may be written to the peer.
};

/// More turns than a pass has, so that later passes have larger signals.
constexpr uint32_t kTurnsOfPass = 1U << 20;

/// What stands for the message of a turn in the first pass; of a buffer's messages, later ones have
/// larger values.
constexpr uint32_t signal_value(uint32_t turn) { return turn + 1; }

constexpr uint64_t kMostPeers = Staging::kSignalsBytes / sizeof(Signals);

/// Signals to set, or to wait for, at each of several points of a pass; ready on the device.
class SignalPoints {
 public:
  void add(uint32_t* signal, uint32_t value) { signals_.push_back({signal, value}); }
  /// Ends a point; the next `add` belongs to the one behind it.
  void end_point() { ends_.push_back(narrow<uint32_t>(signals_.size())); }
  void upload(cudaStream_t stream) { on_device_.emplace(std::span(signals_), stream); }

  void set(size_t point, uint32_t base, cudaStream_t stream) const {
    AWEX_CHECK(cuda::launch_set_signals(begin(point), count(point), base, stream),
               "launch {} signals to inference ranks", count(point));
  }
  void await(size_t point, uint32_t base, cudaStream_t stream) const {
    AWEX_CHECK(cuda::launch_await_signals(begin(point), count(point), base, stream),
               "launch the wait for {} signals of inference ranks", count(point));
  }

 private:
  [[nodiscard]] uint32_t first(size_t point) const { return point == 0 ? 0 : ends_[point - 1]; }
  [[nodiscard]] const cuda::Signal* begin(size_t point) const {
    return on_device_->data() + first(point);
  }
  [[nodiscard]] uint32_t count(size_t point) const { return ends_[point] - first(point); }

  std::vector<cuda::Signal> signals_;
  std::vector<uint32_t> ends_;  ///< Of the points, in signals_.
  std::optional<DeviceArray<cuda::Signal>> on_device_;
};

class PeerExchange final : public Exchange {
 public:
  PeerExchange(Job& job, Device& device, Kernels& kernels)
      : Exchange(ranks_of(job.peers(), Role::kInference)),
        kernels_(kernels),
        me_(job.peers().at(static_cast<size_t>(job.rank())).role_rank),
        staging_(device),
        peers_(ranks_of(job.peers(), Role::kInference).size()),
        in_flight_(job, *this) {
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

  void map(uint32_t peer, const CudaMemorySource& source, const OfferedRange& offered,
           std::vector<UniqueFd> fds) {
    auto& mapped = peers_.at(peer);
    mapped = make_cuda_import(source, fmt::format("messages to inference rank {}", peer),
                              offered.bytes, offered.chunk_bytes, MappedAccess::kReadWrite);
    mapped->map(std::move(fds));
  }

  void prepare(std::vector<MessageRound> rounds) override {
    const auto grants = grants_of(rounds, kBuffers);
    add_grants(grants.at_begin);
    for (size_t round = 0; round < rounds.size(); ++round) {
      check_turn(rounds[round].turn);
      add_messages(rounds[round]);
      add_grants(grants.after_round[round]);
    }
    for (auto* points : {&to_grant_, &granted_, &to_arrive_, &arrived_}) {
      points->upload(lane(Lane::kMain));
    }
    Exchange::prepare(std::move(rounds));
  }

  void connect() override {}  // every peer's memory is mapped

  [[nodiscard]] std::byte* outbox(uint32_t peer, uint32_t turn) const override {
    return peers_.at(peer)->data() + turn % kBuffers * kMessageBufferBytes;
  }
  [[nodiscard]] const std::byte* inbox(uint32_t turn) const override {
    return staging_.buffer(turn % kBuffers);
  }

  // Each signal is queued before any wait that it lets end, on whatever rank: so it does not matter
  // where a call of the driver waits for what is queued so far.
  void begin() override {
    base_ += kTurnsOfPass;
    to_grant_.set(0, base_, lane(Lane::kReceive0));
  }
  void open(size_t round) override {
    in_flight_.make_room(round);
    granted_.await(round, base_, send_stream(round));
  }
  void deliver(size_t round) override {
    to_arrive_.set(round, base_, send_stream(round));
    in_flight_.mark_sent(round, send_stream(round));
    arrived_.await(round, base_, receive_stream(round));
  }
  void close(size_t round) override {
    to_grant_.set(round + 1, base_, receive_stream(round));
    in_flight_.mark_received(round, receive_stream(round));
  }

  void wait() override { in_flight_.wait_for_all(lane(Lane::kMain)); }
  [[nodiscard]] uint64_t staging_bytes() const override { return staging_.range().held_bytes(); }

 private:
  [[nodiscard]] cudaStream_t lane(Lane lane) const {
    return static_cast<cudaStream_t>(kernels_.stream(lane));
  }

  static uint32_t* signal(std::byte* staging, uint32_t peer, Progress Signals::*kind,
                          uint32_t turn) {
    auto* all = reinterpret_cast<Signals*>(staging + Staging::kSignalsOffset);
    return (all[peer].*kind).data() + turn % kBuffers;
  }
  /// This rank's signal about a peer.
  [[nodiscard]] uint32_t* own(uint32_t peer, Progress Signals::*kind, uint32_t turn) const {
    return signal(staging_.buffer(0), peer, kind, turn);
  }
  /// A peer's signal about this rank.
  [[nodiscard]] uint32_t* of(uint32_t peer, Progress Signals::*kind, uint32_t turn) const {
    return signal(peers_.at(peer)->data(), me_, kind, turn);
  }

  [[nodiscard]] cudaStream_t send_stream(size_t round) const {
    return lane(send_lane(rounds()[round].turn));
  }
  [[nodiscard]] cudaStream_t receive_stream(size_t round) const {
    return lane(receive_lane(rounds()[round].turn));
  }

  static void check_turn(uint32_t turn) {
    if (signal_value(turn) < kTurnsOfPass) return;
    throw runtime_error(fmt::format("more than {} messages to one rank are too many", turn),
                        "--exchange nccl has no such limit");
  }

  void add_messages(const MessageRound& round) {
    const uint32_t value = signal_value(round.turn);
    for (const auto& message : round.sends) {
      granted_.add(own(message.peer, &Signals::granted, round.turn), value);
      to_arrive_.add(of(message.peer, &Signals::arrived, round.turn), value);
    }
    for (const auto& message : round.receives) {
      arrived_.add(own(message.peer, &Signals::arrived, round.turn), value);
    }
    for (auto* points : {&granted_, &to_arrive_, &arrived_}) points->end_point();
  }

  void add_grants(const std::vector<Grant>& grants) {
    for (const auto& [peer, turn] : grants) {
      to_grant_.add(of(peer, &Signals::granted, turn), signal_value(turn));
    }
    to_grant_.end_point();
  }

  Kernels& kernels_;
  uint32_t me_;  ///< Role rank.
  Staging staging_;
  std::vector<std::unique_ptr<ImportedRange>> peers_;  ///< Their staging memory, by role rank.
  SignalPoints to_grant_;  ///< What is granted at the begin, then by round.
  SignalPoints granted_;   ///< By round.
  SignalPoints to_arrive_;
  SignalPoints arrived_;
  uint32_t base_ = 0;  ///< Of this pass's signals.
  RoundsInFlight in_flight_;
};

/// Where a process's pid means something, and so its descriptors can be fetched.
struct PidSpace {
  uint64_t device = 0;
  uint64_t inode = 0;

  [[nodiscard]] bool operator==(const PidSpace&) const = default;
};

PidSpace pid_space() {
  struct stat status {};
  if (::stat("/proc/self/ns/pid", &status) != 0) {
    throw errno_error("learn the namespace of this process's id", "stat", errno);
  }
  return {status.st_dev, status.st_ino};
}

/// All pairs of ranks in one order, so that none waits for another in a circle.
void map_all(Job& job, Device& device, const std::vector<OfferedRange>& offers,
             PeerExchange& exchange) {
  const auto source = inspect_cuda_memory(device.identity().index, device.identity().name);
  const auto ranks = ranks_of(job.peers(), Role::kInference);
  for (uint32_t giver = 0; giver < ranks.size(); ++giver) {
    const auto& offered = offers.at(static_cast<size_t>(ranks[giver]));
    const auto what = fmt::format("the message buffers of {}", job.describe(ranks[giver]));
    for (const int taker : ranks) {
      if (taker == ranks[giver]) continue;
      if (job.rank() == ranks[giver]) hand_out_fds(job, taker, offered.numbers(), what);
      if (job.rank() != taker) continue;
      exchange.map(giver, source, offered, take_fds(job, ranks[giver], offered.numbers(), what));
    }
  }
}

}  // namespace

std::optional<std::string> find_unreachable_peer(Job& job, Device& device) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  const auto spaces = job.all_gather_value(pid_space(), "the pid namespaces of all ranks");
  int32_t obstacle = -1;  // a rank that this one cannot reach
  for (const auto& peer : job.peers()) {
    if (me.role == Role::kTrainer || peer.role == Role::kTrainer || peer.rank == me.rank) continue;
    const bool reached =
        peer.host == me.host &&
        spaces[static_cast<size_t>(peer.rank)] == spaces[static_cast<size_t>(me.rank)] &&
        reaches_device(device.identity().index, peer.device);
    if (!reached && obstacle < 0) obstacle = peer.rank;
  }
  const auto all = job.all_gather_value(obstacle, "which GPUs reach each other");
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank] < 0) continue;
    const auto& other = job.peers().at(static_cast<size_t>(all[rank]));
    const auto& one = job.peers().at(rank);
    return fmt::format(
        "{} cannot map memory of {}: {}", one.describe(), other.describe(),
        one.host == other.host
            ? "the one does not see the other's GPU or process, or no link joins them"
            : "they are on different hosts");
  }
  return std::nullopt;
}

std::unique_ptr<Exchange> make_peer_exchange(Job& job, Device& device, Kernels& kernels) {
  const auto& me = job.peers().at(static_cast<size_t>(job.rank()));
  std::unique_ptr<PeerExchange> exchange;
  OfferedRange own;
  if (me.role == Role::kInference) {
    exchange = std::make_unique<PeerExchange>(job, device, kernels);
    own = offer(exchange->range());
  }
  const auto offers = job.all_gather_value(own, "the swap of message buffers");
  if (exchange) map_all(job, device, offers, *exchange);
  if (job.is_reporter()) {
    log::detail("messages between GPUs are written into the receivers' memory");
  }
  return exchange;
}

}  // namespace awex
