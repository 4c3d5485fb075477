#include "transfer/share/fd_exchange.hpp"

#include <utility>

#include "base/fixed_text.hpp"
#include "base/log.hpp"

namespace awex {
namespace {

constexpr auto kHandOver = "the hand-over of memory descriptors";

/// What the taker tells the giver: that it has the descriptors, or that it asks for a socket.
enum class Way : int32_t { kDone, kBySocket };

using SocketName = FixedText<64>;

template <class T>
void tell(Job& job, int to, const T& value) {
  const Outgoing outgoing{to, std::as_bytes(std::span(&value, 1))};
  job.exchange({&outgoing, 1}, {}, kHandOver);
}

template <class T>
T hear(Job& job, int from) {
  T value{};
  const Incoming incoming{from, std::as_writable_bytes(std::span(&value, 1))};
  job.exchange({}, {&incoming, 1}, kHandOver);
  return value;
}

int pid_of(const Job& job, int rank) { return job.peers().at(static_cast<size_t>(rank)).pid; }

}  // namespace

void hand_out_fds(Job& job, int taker, std::span<const int> fds, const std::string& what) {
  if (hear<Way>(job, taker) == Way::kDone) return;
  FdSocket socket;
  tell<SocketName>(job, taker, fixed_text<64>(socket.name()));
  socket.serve(pid_of(job, taker), fds, what, job.deadline(), job);
}

std::vector<UniqueFd> take_fds(Job& job, int giver, std::span<const int32_t> numbers,
                               const std::string& what, FdTransport transport) {
  const int pid = pid_of(job, giver);
  if (transport != FdTransport::kSocket) {
    auto result = fetch_by_pidfd(pid, numbers);
    if (result.refusal == 0) {
      tell(job, giver, Way::kDone);
      return std::move(result.fds);
    }
    auto refusal =
        errno_error(fmt::format("take the descriptors of {}", what), "pidfd_getfd", result.refusal);
    if (transport == FdTransport::kPidfd) throw std::move(refusal);
    log::detail(fmt::format("{}; taking them through a socket", refusal.what()));
  }
  tell(job, giver, Way::kBySocket);
  const auto socket = hear<SocketName>(job, giver);
  return fetch_by_socket(text_of(socket), pid, numbers.size(), what, job.deadline(), job);
}

}  // namespace awex
