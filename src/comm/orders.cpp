#include "comm/orders.hpp"

#include <cstdint>
#include <string>

#include "base/checked.hpp"
#include "comm/requests.hpp"

namespace awex {

void Orders::give(std::span<const std::byte> order) {
  failures_.set_agreed(false);
  const auto bytes = narrow<uint64_t>(order.size());
  Requests letters(world_.traffic());
  for (int other = 1; other < world_.size(); ++other) {
    letters.send(bytes_of(bytes), other, kOrderTag);
    if (bytes > 0) letters.send(order, other, kOrderTag);
  }
  waits_.wait_for_others(letters, "taken the next order", {});
}

std::vector<std::byte> Orders::await() {
  failures_.set_agreed(false);
  uint64_t bytes = 0;
  {
    Requests head(world_.traffic());
    head.receive(writable_bytes_of(bytes), 0, kOrderTag);
    waits_.rest([&] { return head.test(); });
  }
  std::vector<std::byte> order(narrow<size_t>(bytes));
  if (order.empty()) return order;
  Requests body(world_.traffic());
  body.receive(order, 0, kOrderTag);
  waits_.wait_for_rank_zero([&] { return body.test(); }, "sent the order that it has begun");
  return order;
}

}  // namespace awex
