#include "transfer/share/fd_transport.hpp"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>

#include "base/error.hpp"

namespace awex {
namespace {

// The kernel takes no more descriptors in one message (SCM_MAX_FD).
constexpr size_t kFdsPerMessage = 253;

UniqueFd make_socket() {
  // Packets keep their bounds, so each message is one set of descriptors.
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) throw errno_error("make a socket for descriptors", "socket", errno);
  return fd;
}

struct Address {
  sockaddr_un address{};
  socklen_t bytes = 0;
};

Address abstract_address(const std::string& name) {
  Address result;
  result.address.sun_family = AF_UNIX;
  if (name.empty() || name.size() + 1 > sizeof(result.address.sun_path)) {
    throw runtime_error(fmt::format("'{}' is no name of a socket", name));
  }
  std::memcpy(result.address.sun_path + 1, name.data(), name.size());
  result.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return result;
}

std::string random_name() {
  std::array<unsigned char, 16> bytes{};
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw errno_error("make a random name for a socket", "getrandom", errno);
  }
  return fmt::format("awex-{:02x}", fmt::join(bytes, ""));
}

ucred credentials_of_peer(int socket) {
  ucred credentials{};
  socklen_t bytes = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) {
    throw errno_error("learn who is at the other end of a socket", "getsockopt(SO_PEERCRED)",
                      errno);
  }
  return credentials;
}

bool is_expected(const ucred& credentials, int pid) {
  return credentials.pid == pid && credentials.uid == ::getuid();
}

/// What a system without pidfds, a filter of system calls or a security module answers.
bool is_refusal(int error_number) {
  return error_number == EPERM || error_number == ENOSYS || error_number == EACCES;
}

bool would_block(int error_number) {
  return error_number == EAGAIN || error_number == EWOULDBLOCK || error_number == EINTR;
}

/// A message of one byte with room for `count` descriptors.
class FdMessage {
 public:
  explicit FdMessage(size_t count) : control_(CMSG_SPACE(count * sizeof(int))) {
    header_.msg_iov = &payload_;
    header_.msg_iovlen = 1;
    header_.msg_control = control_.data();
    header_.msg_controllen = control_.size();
  }
  FdMessage(const FdMessage&) = delete;
  FdMessage& operator=(const FdMessage&) = delete;
  FdMessage(FdMessage&&) = delete;
  FdMessage& operator=(FdMessage&&) = delete;
  ~FdMessage() = default;

  void put(std::span<const int> fds) {
    auto* part = CMSG_FIRSTHDR(&header_);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(part), fds.data(), fds.size_bytes());
  }

  /// Owns whatever descriptors have come, so that none leaks when the message is wrong.
  [[nodiscard]] std::vector<UniqueFd> take() {
    std::vector<UniqueFd> fds;
    for (auto* part = CMSG_FIRSTHDR(&header_); part != nullptr;
         part = CMSG_NXTHDR(&header_, part)) {
      if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
        fds.emplace_back(fd);
      }
    }
    return fds;
  }

  [[nodiscard]] msghdr* header() { return &header_; }

 private:
  char byte_ = 'f';
  iovec payload_{&byte_, 1};
  std::vector<std::byte> control_;
  msghdr header_{};
};

void send_fds(int socket, std::span<const int> fds, const std::string& what,
              const Deadline& deadline, WaitMonitor& monitor) {
  FdMessage message(fds.size());
  message.put(fds);
  wait_until(
      [&] {
        if (::sendmsg(socket, message.header(), MSG_NOSIGNAL) >= 0) return true;
        if (would_block(errno)) return false;
        throw errno_error(fmt::format("send {} descriptors of {}", fds.size(), what), "sendmsg",
                          errno);
      },
      fmt::format("sending {} descriptors of {}", fds.size(), what), deadline, monitor);
}

std::vector<UniqueFd> receive_fds(int socket, size_t count, const std::string& what,
                                  const Deadline& deadline, WaitMonitor& monitor) {
  FdMessage message(count);
  const auto attempt = fmt::format("receive {} descriptors of {}", count, what);
  wait_until(
      [&] {
        const auto bytes = ::recvmsg(socket, message.header(), MSG_CMSG_CLOEXEC);
        if (bytes > 0) return true;
        if (bytes == 0) throw runtime_error("cannot " + attempt + ": the sender closed the socket");
        if (would_block(errno)) return false;
        throw errno_error(attempt, "recvmsg", errno);
      },
      fmt::format("receiving {} descriptors of {}", count, what), deadline, monitor);
  auto fds = message.take();
  if (fds.size() != count) {
    throw runtime_error(fmt::format("cannot {}: only {} arrived", attempt, fds.size()),
                        "this process may have too few descriptors left: see 'ulimit -n'");
  }
  return fds;
}

}  // namespace

PidfdResult fetch_by_pidfd(int pid, std::span<const int32_t> numbers) {
  PidfdResult result;
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process.valid()) {
    if (!is_refusal(errno)) {
      throw errno_error(fmt::format("open process {}", pid), "pidfd_open", errno);
    }
    result.refusal = errno;
    return result;
  }
  for (const int32_t number : numbers) {
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0)));
    if (!fd.valid()) {
      if (!is_refusal(errno)) {
        throw errno_error(fmt::format("take descriptor {} of process {}", number, pid),
                          "pidfd_getfd", errno);
      }
      result.refusal = errno;
      result.fds.clear();
      return result;
    }
    result.fds.push_back(std::move(fd));
  }
  return result;
}

FdSocket::FdSocket() : name_(random_name()), listener_(make_socket()) {
  const auto [address, bytes] = abstract_address(name_);
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), bytes) != 0) {
    throw errno_error(fmt::format("name a socket @{}", name_), "bind", errno);
  }
  constexpr int kBacklog = 4;
  if (::listen(listener_.get(), kBacklog) != 0) {
    throw errno_error(fmt::format("listen on socket @{}", name_), "listen", errno);
  }
}

void FdSocket::serve(int pid, std::span<const int> fds, const std::string& what,
                     const Deadline& deadline, WaitMonitor& monitor) {
  UniqueFd connection;
  wait_until(
      [&] {
        connection =
            UniqueFd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!connection.valid()) {
          if (would_block(errno) || errno == ECONNABORTED) return false;
          throw errno_error(fmt::format("accept process {} for {}", pid, what), "accept4", errno);
        }
        return is_expected(credentials_of_peer(connection.get()), pid);
      },
      fmt::format("the connection of process {} for descriptors of {}", pid, what), deadline,
      monitor);
  for (size_t at = 0; at < fds.size(); at += kFdsPerMessage) {
    send_fds(connection.get(), fds.subspan(at, std::min(kFdsPerMessage, fds.size() - at)), what,
             deadline, monitor);
  }
}

std::vector<UniqueFd> fetch_by_socket(const std::string& name, int pid, size_t count,
                                      const std::string& what, const Deadline& deadline,
                                      WaitMonitor& monitor) {
  const auto attempt = fmt::format("connect to process {} for descriptors of {}", pid, what);
  const UniqueFd socket = make_socket();
  const auto [address, bytes] = abstract_address(name);
  wait_until(
      [&, &to = address, length = bytes] {
        if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&to), length) == 0) {
          return true;
        }
        if (would_block(errno)) return false;
        throw errno_error(attempt, "connect", errno);
      },
      attempt, deadline, monitor);
  const auto owner = credentials_of_peer(socket.get());
  if (!is_expected(owner, pid)) {
    throw runtime_error(fmt::format("cannot {}: socket @{} belongs to process {} of user {}",
                                    attempt, name, owner.pid, owner.uid));
  }
  std::vector<UniqueFd> fds;
  while (fds.size() < count) {
    for (auto& fd : receive_fds(socket.get(), std::min(kFdsPerMessage, count - fds.size()), what,
                                deadline, monitor)) {
      fds.push_back(std::move(fd));
    }
  }
  return fds;
}

}  // namespace awex
