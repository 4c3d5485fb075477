#include "doctor/sharing.hpp"

#include <unistd.h>

#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "memory/gpu_facts.hpp"
#include "transfer/share/fd_transport.hpp"
#include "transfer/share/offered_range.hpp"

namespace awex {
namespace {

constexpr uint64_t kProbeBytes = 2ULL << 20;
constexpr const char* kWhat = "memory to be tried";

/// What a rank offers to be tried. Plain data.
struct ProbeOffer {
  int32_t pid = 0;
  OfferedRange range;
  FixedText<64> socket{};  ///< Empty: it could make none.
  FixedText<256> failure{};
  int32_t has_ipc = 0;
  IpcHandle ipc{};
  FixedText<256> ipc_failure{};
};
static_assert(std::is_trivially_copyable_v<ProbeOffer>);

/// What memory that rank `rank` offers begins with.
uint64_t mark_of(int rank) { return 0x6177657864726f63ULL + static_cast<uint64_t>(rank); }

/// What failed, without a hint: the finding has its own.
template <class Work>
std::string error_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

/// What a rank has of its own for others to take. Stays until all have tried.
class Offering {
 public:
  Offering(Job& job, Device& device, Seconds longest) {
    offer_.pid = ::getpid();
    offer_.failure = fixed_text<256>(error_of([&] {
      range_ = device.reserve("memory of the doctor", kProbeBytes);
      range_->take_chunks(0, range_->chunks());
      const auto host = device.allocate_host(sizeof(uint64_t));
      const uint64_t mark = mark_of(job.rank());
      std::memcpy(host->bytes().data(), &mark, sizeof(mark));
      const auto queue = device.make_queue();
      queue->copy(range_->data(), host->bytes().data(), sizeof(mark));
      queue->finish("writing what a partner is to read", Deadline(longest), job);
      offer_.range = offer(range_->owned(), device.kind());
      socket_.emplace();
      offer_.socket = fixed_text<64>(socket_->name());
    }));
    if (device.kind() == BackendKind::kHost) return;
    offer_.ipc_failure = fixed_text<256>(error_of([&] {
      ipc_ = make_ipc_memory(mark_of(job.rank()));
      offer_.ipc = ipc_->handle();
      offer_.has_ipc = 1;
    }));
  }

  [[nodiscard]] const ProbeOffer& offer_record() const { return offer_; }

  /// Hands the descriptors to process `pid`, or gives up: the one who takes them tells why.
  void serve(int pid, Seconds longest) noexcept {
    if (!socket_) return;
    NoMonitor nobody;
    try {
      socket_->serve(pid, offer_.range.numbers(), kWhat, Deadline(longest), nobody);
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch)
    }
  }

 private:
  ProbeOffer offer_;
  std::unique_ptr<DeviceRange> range_;
  std::unique_ptr<IpcMemory> ipc_;
  std::optional<FdSocket> socket_;
};

/// Descriptors of a giver, or why there are none.
struct Taken {
  std::vector<UniqueFd> fds;
  std::string error;
};

Taken take_by_pidfd(const ProbeOffer& from) {
  Taken taken;
  taken.error = error_of([&] {
    auto result = fetch_by_pidfd(from.pid, from.range.numbers());
    if (result.refusal != 0) {
      throw errno_error(fmt::format("take a descriptor of process {}", from.pid), "pidfd_getfd",
                        result.refusal);
    }
    taken.fds = std::move(result.fds);
  });
  return taken;
}

Taken take_by_socket(Job& job, const ProbeOffer& from, Seconds longest) {
  Taken taken;
  taken.error = error_of([&] {
    taken.fds = fetch_by_socket(text_of(from.socket), from.pid, from.range.numbers().size(), kWhat,
                                Deadline(longest), job);
  });
  return taken;
}

/// Maps what was taken and reads its mark.
Finding read_mark(Job& job, Device& device, const ProbeOffer& from, int giver, Seconds longest,
                  std::vector<UniqueFd> fds) {
  uint64_t mark = 0;
  const auto error = error_of([&] {
    const auto import =
        device.reserve_mapping("memory of a partner", from.range.bytes, from.range.chunk_bytes);
    import->map(std::move(fds));
    const auto host = device.allocate_host(sizeof(mark));
    const auto queue = device.make_queue();
    queue->copy(host->bytes().data(), import->data(), sizeof(mark));
    queue->finish("reading a partner's memory", Deadline(longest), job);
    std::memcpy(&mark, host->bytes().data(), sizeof(mark));
    import->unmap();
  });
  if (!error.empty()) {
    return failed(error,
                  "ranks that share a GPU must be of one user, and their containers have "
                  "the same GPUs (docker --gpus all)");
  }
  if (mark != mark_of(giver)) {
    return failed(
        fmt::format("rank {}'s memory reads {:#x} here, not {:#x}", giver, mark, mark_of(giver)),
        "this is a fault of the driver or the kernel: update it");
  }
  return passed(fmt::format("a partner's {} can be mapped and read",
                            device.kind() == BackendKind::kCuda ? "VMM memory" : "memfd"));
}

Finding try_legacy_ipc(const Device& device, const ProbeOffer& from, int giver, bool is_own) {
  if (device.kind() == BackendKind::kHost) return waived("only GPUs have it");
  if (is_own) return waived("needs two processes");
  constexpr const char* kRemedy =
      "an engine's memory from cudaMalloc is reached by it: run both roles with --ipc=host and "
      "--pid=host, without PYTORCH_CUDA_ALLOC_CONF=expandable_segments";
  if (from.has_ipc == 0) return waived(text_of(from.ipc_failure), kRemedy);
  uint64_t mark = 0;
  const auto error = error_of([&] { mark = read_ipc_memory(from.ipc); });
  if (!error.empty()) return waived(error, kRemedy);
  if (mark != mark_of(giver)) return waived("a partner's memory reads wrong", kRemedy);
  return passed("a partner's cudaMalloc memory can be opened");
}

SharingFindings nobody_to_try_with() {
  const auto finding = waived("no other rank that this one sees is on its host");
  return {finding, finding, finding, finding};
}

/// What cannot be tried because the giver could not offer it.
SharingFindings untried(int giver, const std::string& failure) {
  const auto finding = waived(fmt::format("not tried: rank {} offers no memory", giver));
  return {finding, finding,
          failed(fmt::format("rank {}: {}", giver, failure),
                 "see what else fails: open files, memfd, host memory, device memory"),
          finding};
}

}  // namespace

std::pair<Finding, Finding> judge_ways(const std::string& pidfd_error,
                                       const std::string& socket_error) {
  constexpr const char* kPidfdRemedy =
      "let one of the two ways work; this one with docker --cap-add SYS_PTRACE --security-opt "
      "seccomp=unconfined, or sysctl kernel.yama.ptrace_scope=0, on Linux 5.6 or newer";
  constexpr const char* kSocketRemedy =
      "let one of the two ways work; this one where both roles share a network namespace "
      "(docker --network=host, or one pod) and a user";
  const bool either = pidfd_error.empty() || socket_error.empty();
  Finding pidfd = passed("takes descriptors from the partner");
  Finding socket = passed("receives descriptors from the partner");
  if (!pidfd_error.empty()) {
    pidfd = either ? waived(pidfd_error + "; sockets serve", kPidfdRemedy)
                   : failed(pidfd_error, kPidfdRemedy);
  }
  if (!socket_error.empty()) {
    socket = either ? waived(socket_error + "; pidfd_getfd serves", kSocketRemedy)
                    : failed(socket_error, kSocketRemedy);
  }
  return {pidfd, socket};
}

SharingFindings try_sharing(Job& job, Device& device, const SharingPartners& partners,
                            Seconds longest) {
  Offering mine(job, device, longest);
  const auto offers = job.all_gather_value(mine.offer_record(), "what ranks offer to be tried");
  const int giver = partners.giver;
  std::jthread server;
  if (partners.taker >= 0) {
    const int pid = offers[static_cast<size_t>(partners.taker)].pid;
    server = std::jthread([&mine, pid, longest] { mine.serve(pid, longest); });
  }
  SharingFindings findings = nobody_to_try_with();
  if (giver >= 0) {
    const auto& from = offers[static_cast<size_t>(giver)];
    if (const auto failure = text_of(from.failure); !failure.empty()) {
      findings = untried(giver, failure);
    } else {
      auto by_pidfd = take_by_pidfd(from);
      auto by_socket = take_by_socket(job, from, longest);
      std::tie(findings.pidfd, findings.socket) = judge_ways(by_pidfd.error, by_socket.error);
      auto fds = by_pidfd.error.empty() ? std::move(by_pidfd.fds) : std::move(by_socket.fds);
      findings.memory = fds.empty() ? waived("not tried: no descriptor of a partner came here")
                                    : read_mark(job, device, from, giver, longest, std::move(fds));
      findings.legacy_ipc = try_legacy_ipc(device, from, giver, giver == job.rank());
    }
  }
  if (server.joinable()) server.join();
  // A rank's memory stays until others have read it.
  (void)job.all_gather_value(1, "who has tried the memory of others");
  return findings;
}

}  // namespace awex
