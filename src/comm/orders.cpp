#include "comm/orders.hpp"

#include <cstdint>
#include <optional>

#include "base/checked.hpp"
#include "comm/requests.hpp"

namespace awex {
namespace {

// How long a rank that was told to end lets rank 0 end the job in order.
constexpr Seconds kLastOrderGrace{10};

}  // namespace

void Orders::give(std::span<const std::byte> order) {
  failures_.throw_known();
  failures_.set_agreed(false);
  const auto bytes = narrow<uint64_t>(order.size());
  Requests letters(world_.traffic());
  for (int other = 1; other < world_.size(); ++other) {
    letters.send(bytes_of(bytes), other, kOrderTag);
    if (bytes > 0) letters.send(order, other, kOrderTag);
  }
  world_.ring_node();
  waits_.wait_for_others(letters, "taken the next order", {});
  hosts_.begin();
  failures_.begin_command();
}

std::vector<std::byte> Orders::await() {
  failures_.throw_known();
  failures_.set_agreed(false);
  failures_.end_command();
  std::vector<std::byte> order(narrow<size_t>(await_size()));
  if (!order.empty()) {
    Requests body(world_.traffic());
    body.receive(order, 0, kOrderTag);
    waits_.wait_for_rank_zero([&] { return body.test(); }, "sent the order that it has begun");
  }
  // One that came while this rank rested does not fail what it begins.
  if (const int signal = failures_.pending_signal()) failures_.look_into_signal(signal);
  failures_.begin_command();
  return order;
}

uint64_t Orders::await_size() {
  uint64_t bytes = 0;
  std::optional<Deadline> last_order;
  Requests head(world_.traffic());
  head.receive(writable_bytes_of(bytes), 0, kOrderTag);
  hosts_.begin();
  waits_.rest([&] {
    if (head.test()) return true;
    hosts_.look();
    if (!failures_.told_to_end()) return false;
    if (!last_order) last_order.emplace(kLastOrderGrace);
    if (last_order->expired()) failures_.fail_without_last_order(kLastOrderGrace);
    return false;
  });
  if (world_.is_first_of_node()) world_.ring_node();
  return bytes;
}

}  // namespace awex
