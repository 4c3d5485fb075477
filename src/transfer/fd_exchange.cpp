#include "transfer/fd_exchange.hpp"

#include <utility>

#include "base/log.hpp"

namespace awex {
namespace {

constexpr auto kHandOver = "the hand-over of memory descriptors";

/// How the taker has taken, or will; it tells the other.
enum class Way : int32_t { kDone, kBySocket };

}  // namespace

void hand_out_fds(Job& job, int taker, FdSocket& socket, std::span<const int> fds,
                  const std::string& what) {
  Way way = Way::kDone;
  const Incoming from_taker{taker, std::as_writable_bytes(std::span(&way, 1))};
  job.exchange({}, {&from_taker, 1}, kHandOver);
  if (way == Way::kDone) return;
  socket.serve(job.peers().at(static_cast<size_t>(taker)).pid, fds, what, job.deadline(), job);
}

std::vector<UniqueFd> take_fds(Job& job, const FdOffer& offer, std::span<const int32_t> numbers,
                               const std::string& what, FdTransport transport) {
  const auto tell = [&](Way way) {
    const Outgoing to_other{offer.rank, std::as_bytes(std::span(&way, 1))};
    job.exchange({&to_other, 1}, {}, kHandOver);
  };
  if (transport != FdTransport::kSocket) {
    auto result = fetch_by_pidfd(offer.pid, numbers);
    if (result.refusal == 0) {
      tell(Way::kDone);
      return std::move(result.fds);
    }
    auto refusal =
        errno_error(fmt::format("take the descriptors of {}", what), "pidfd_getfd", result.refusal);
    if (transport == FdTransport::kPidfd) throw std::move(refusal);
    log::detail(fmt::format("{}; taking them through a socket", refusal.what()));
  }
  tell(Way::kBySocket);
  return fetch_by_socket(text_of(offer.socket), offer.pid, numbers.size(), what, job.deadline(),
                         job);
}

}  // namespace awex
