#include "transfer/share/lent_exchange.hpp"

#include <array>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace awex {
namespace {

constexpr auto kWhat = "what engines lend";

/// A block and the number of its descriptor in the giver's process.
struct Record {
  LentBlock block;
  int32_t fd = -1;
};
static_assert(std::is_trivially_copyable_v<Record>);
static_assert(std::is_trivially_copyable_v<MemorySegment>);

struct Head {
  uint64_t segments = 0;
  uint64_t stays = 0;
};

}  // namespace

void hand_out_lent(Job& job, int taker, const LentMemory& lent, const std::string& what) {
  const Head head{lent.segments.size(), lent.stays ? 1U : 0U};
  std::vector<Record> records;
  std::vector<int> fds;
  for (const auto& lending : lent.lendings) {
    records.push_back({lending.block, lending.fd.get()});
    if (lending.block.has_fd) fds.push_back(lending.fd.get());
  }
  const std::array sends{Outgoing{taker, std::as_bytes(std::span(&head, 1))},
                         Outgoing{taker, std::as_bytes(std::span(records))},
                         Outgoing{taker, std::as_bytes(std::span(lent.segments))}};
  job.exchange(sends, {}, kWhat);
  if (!fds.empty()) hand_out_fds(job, taker, fds, what);
}

LentMemory take_lent(Job& job, int giver, const OfferedRange& offered, const std::string& what,
                     FdTransport transport) {
  Head head;
  const Incoming first{giver, std::as_writable_bytes(std::span(&head, 1))};
  job.exchange({}, {&first, 1}, kWhat);
  std::vector<Record> records(offered.count);
  LentMemory lent;
  lent.number = offered.lent_number;
  lent.stays = head.stays != 0;
  lent.segments.resize(head.segments);
  const std::array rest{Incoming{giver, std::as_writable_bytes(std::span(records))},
                        Incoming{giver, std::as_writable_bytes(std::span(lent.segments))}};
  job.exchange({}, rest, kWhat);
  std::vector<int32_t> numbers;
  for (const auto& record : records) {
    if (record.block.has_fd) numbers.push_back(record.fd);
  }
  std::vector<UniqueFd> fds;
  if (!numbers.empty()) fds = take_fds(job, giver, numbers, what, transport);
  auto next = fds.begin();
  for (const auto& record : records) {
    Lending lending{record.block, {}};
    if (record.block.has_fd) lending.fd = std::move(*next++);
    lent.lendings.push_back(std::move(lending));
  }
  return lent;
}

}  // namespace awex
