#include "transfer/move/host_channels.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "base/wait.hpp"
#include "transfer/kernels/host_conversion.hpp"
#include "transfer/move/channel_packed_streams.hpp"
#include "transfer/move/strided_copies.hpp"

namespace awex {
namespace {

constexpr uint64_t kNoDifference = ~uint64_t{0};

/// A copy of a packed stream as one end's threads move it. Its packed side is a slot, not an
/// address.
struct HostCopyDescriptor {
  StridedCopy copy;  ///< To be sent: from memory. Received: to memory.
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t first_byte = 0;  ///< Position of its first byte among all that this end moves.
};

using HostPackedStream = ChannelPackedStream<HostCopyDescriptor>;
using Pass = ChannelPass<HostCopyDescriptor>;

/// Calls work(row, byte in row, bytes, packed) for what bytes [from, to) of a descriptor have of
/// its rows; the packed bytes begin at `packed`.
template <class Work>
void for_each_row(const HostCopyDescriptor& descriptor, uint64_t from, uint64_t to,
                  std::byte* packed, const Work& work) {
  const uint64_t row_bytes = descriptor.copy.row_bytes;
  for (uint64_t at = from; at < to;) {
    const uint64_t byte = at % row_bytes;
    const uint64_t bytes = std::min(row_bytes - byte, to - at);
    work(at / row_bytes, byte, bytes, packed + (at - from));
    at += bytes;
  }
}

void pack(const StridedCopy& copy, uint64_t row, uint64_t byte, uint64_t bytes, std::byte* slot) {
  const std::byte* from = copy.from + row * copy.from_stride;
  if (!copy.conversion) {
    std::memcpy(slot, from + byte, bytes);
    return;
  }
  const uint64_t to_bytes = element_bytes(copy.conversion->to);
  const uint64_t col = byte / to_bytes;
  convert_elements(*copy.conversion, row, col, bytes / to_bytes,
                   from + col * element_bytes(copy.conversion->from), slot);
}

void lower(uint64_t& least, uint64_t value) {
  const std::atomic_ref word(least);
  uint64_t held = word.load();
  while (value < held && !word.compare_exchange_weak(held, value)) {
  }
}

enum class Task : uint8_t { kSend, kReceive, kCompare };

/// A thread that serves one end of a channel: what is a block of threads on a GPU.
class HostEnd {
 public:
  HostEnd(const Pass& pass, Task task, uint32_t& wait) : pass_(pass), task_(task), wait_(wait) {}

  [[nodiscard]] bool await(ChannelCount* count, ChannelCount value, uint32_t peer) const {
    constexpr uint64_t kManyLooks = 2500;  // some 10 ms
    const std::atomic_ref word(*count);
    uint64_t looks = 0;
    for (; !has_come_to(word.load(std::memory_order_acquire), value); ++looks) {
      if (std::atomic_ref(*pass_.stop).load() != 0) return false;
      if (looks == kManyLooks) note(peer + 1);
      pause_in_wait(looks);
    }
    if (looks > kManyLooks) note(0);
    return true;
  }

  void tell(ChannelCount* count, ChannelCount value) const {
    std::atomic_ref(*count).store(value, std::memory_order_release);
  }

  void treat(const HostPackedStream& stream, uint32_t packet, std::byte* slot) const {
    for_each_part(
        stream, packet, slot,
        [&](const HostCopyDescriptor& descriptor, uint32_t from, uint32_t to, std::byte* at) {
          for_each_row(descriptor, from, to, at,
                       [&](auto... place) { move(descriptor, place...); });
        });
  }

 private:
  void note(uint32_t peer) const { std::atomic_ref(wait_).store(peer, std::memory_order_relaxed); }

  void move(const HostCopyDescriptor& descriptor, uint64_t row, uint64_t byte, uint64_t bytes,
            std::byte* slot) const {
    std::byte* own = descriptor.copy.to + row * descriptor.copy.to_stride + byte;
    switch (task_) {
      case Task::kSend:
        pack(descriptor.copy, row, byte, bytes, slot);
        return;
      case Task::kReceive:
        std::memcpy(own, slot, bytes);
        return;
      case Task::kCompare:
        if (std::memcmp(own, slot, bytes) == 0) return;
        const auto differing = std::mismatch(slot, slot + bytes, own).first - slot;
        lower(*pass_.differs, descriptor.first_byte + row * descriptor.copy.row_bytes + byte +
                                  static_cast<uint64_t>(differing));
    }
  }

  const Pass& pass_;
  Task task_;
  uint32_t& wait_;
};

/// Owns the descriptors of one direction's packed streams.
class HostPackedStreams {
 public:
  HostPackedStreams(const LinkedPackedStreams& linked, std::vector<HostCopyDescriptor> descriptors)
      : descriptors_(std::move(descriptors)),
        first_descriptors_(all_first_copies(linked.streams)),
        streams_(channel_packed_streams(linked.streams, linked.links, descriptors_.data(),
                                        first_descriptors_.data())) {}

  [[nodiscard]] const HostPackedStream* data() const { return streams_.data(); }
  [[nodiscard]] uint32_t count() const { return narrow<uint32_t>(streams_.size()); }

 private:
  std::vector<HostCopyDescriptor> descriptors_;
  std::vector<uint32_t> first_descriptors_;
  std::vector<HostPackedStream> streams_;
};

template <class Describe>
std::vector<HostCopyDescriptor> describe_all(const std::vector<PackedStream>& streams,
                                             const Describe& describe) {
  const auto before = bytes_before_copies(streams);
  std::vector<HostCopyDescriptor> descriptors;
  for (const auto& stream : streams) {
    for (const auto& one : stream.copies) {
      const auto copy = describe(one.copy);
      if (copy.conversion) {
        check_conversion(*copy.conversion, copy.rows,
                         copy.row_bytes / element_bytes(copy.conversion->to));
      }
      descriptors.push_back({copy, one.begin, one.end(), before[descriptors.size()]});
    }
  }
  return descriptors;
}

class HostChannels final : public PeerChannels {
 public:
  explicit HostChannels(uint32_t channels) : channels_(channels) {}
  HostChannels(const HostChannels&) = delete;
  HostChannels& operator=(const HostChannels&) = delete;
  HostChannels(HostChannels&&) = delete;
  HostChannels& operator=(HostChannels&&) = delete;
  ~HostChannels() override {
    stop();
    join();
  }

  void clear(std::byte* memory, uint64_t bytes) override { std::memset(memory, 0, bytes); }

  void prepare(const LinkedPackedStreams& sends, const PlacedMemory& trainer,
               const LinkedPackedStreams& receives, const PlacedMemory& own) override {
    sends_.emplace(sends, describe_all(sends.streams, [&](const MergedCopy& copy) {
                     return packing_copy(copy, trainer, nullptr);
                   }));
    receives_.emplace(receives, describe_all(receives.streams, [&](const MergedCopy& copy) {
                        return unpacking_copy(copy, nullptr, own);
                      }));
  }

  void copy(ChannelCount base) override { begin(base, Task::kReceive); }
  void compare(ChannelCount base) override {
    differs_ = kNoDifference;
    begin(base, Task::kCompare);
  }
  [[nodiscard]] bool is_in_order() const override { return false; }

  [[nodiscard]] bool is_done() override {
    if (running_.load() > 0) return false;
    join();
    return true;
  }

  void stop() noexcept override { std::atomic_ref(stop_).store(1); }
  void go_on() override {
    std::atomic_ref(stop_).store(0);
    waits_.fill(0);
  }

  [[nodiscard]] std::vector<uint32_t> late_peers() const override { return late_peers_in(waits_); }

  [[nodiscard]] std::optional<uint64_t> difference() const override {
    if (differs_ == kNoDifference) return std::nullopt;
    return differs_;
  }

 private:
  void begin(ChannelCount base, Task receive) {
    join();
    pass_ = {sends_->data(), receives_->data(), sends_->count(), channels_,
             base,           waits_.data(),     &stop_,          &differs_};
    for (uint32_t channel = 0; channel < channels_; ++channel) {
      start([this, channel] { serve<ChannelEnd::kSender>(Task::kSend, channel); });
      start([this, channel, receive] { serve<ChannelEnd::kReceiver>(receive, channel); });
    }
  }

  template <ChannelEnd kEnd>
  void serve(Task task, uint32_t channel) {
    const HostEnd end(pass_, task, waits_.at(wait_of(kEnd, channel)));
    serve_channel<kEnd>(pass_, channel, end);
  }

  /// After a throw nothing is under way.
  template <class Work>
  void start(Work work) {
    ++running_;
    try {
      threads_.emplace_back([this, work] {
        work();
        --running_;
      });
    } catch (const std::system_error& error) {
      const size_t started = threads_.size();
      --running_;
      stop();
      join();
      throw runtime_error(
          fmt::format("cannot start thread {} of {} for peer copies: {}", started + 1,
                      2 * channels_, error.what()),
          "see the limits of threads and memory: ulimit -u, ulimit -v, and pids.max of the cgroup");
    }
  }

  void join() {
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }

  uint32_t channels_;
  std::optional<HostPackedStreams> sends_;
  std::optional<HostPackedStreams> receives_;
  Pass pass_;
  mutable std::array<uint32_t, kChannelWaits> waits_{};
  uint32_t stop_ = 0;
  uint64_t differs_ = kNoDifference;
  std::atomic<uint32_t> running_{0};
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<PeerChannels> make_host_channels(uint32_t channels) {
  return std::make_unique<HostChannels>(channels);
}

}  // namespace awex
