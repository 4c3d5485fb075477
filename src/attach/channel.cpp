#include "attach/channel.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace awex::attach {
namespace {

constexpr size_t kNumberBytes = 4;
constexpr size_t kHeadBytes = 2 * kNumberBytes;
/// Memory for a text is taken as it comes, whatever length was announced.
constexpr size_t kReadAtOnce = 1 << 20;
/// How long a send that finds no room sleeps before it asks the monitor.
constexpr int kSendPauseMs = 10;

constexpr const char* kOtherBuild = "both sides must run the same version of awex-colocate";

void put_number(std::string& text, size_t number) {
  for (size_t i = 0; i < kNumberBytes; ++i) {
    text += static_cast<char>(static_cast<uint8_t>(number >> (8 * i)));
  }
}

size_t number_at(const std::string& text, size_t at) {
  size_t number = 0;
  for (size_t i = 0; i < kNumberBytes; ++i) {
    number |= static_cast<size_t>(static_cast<uint8_t>(text[at + i])) << (8 * i);
  }
  return number;
}

Error gone(const char* what) {
  return {ExitCode::kPeerLost, fmt::format("the other end has gone{}", what)};
}

/// What a control message with as many descriptors takes, aligned as the kernel wants it.
class Control {
 public:
  Control() { std::memset(bytes_.data(), 0, bytes_.size()); }

  void attach_to(msghdr& message) {
    message.msg_control = bytes_.data();
    message.msg_controllen = bytes_.size();
  }
  void attach_to(msghdr& message, std::span<const int> fds) {
    if (fds.empty()) return;
    message.msg_control = bytes_.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(head), fds.data(), fds.size_bytes());
  }

 private:
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMostFds * sizeof(int))> bytes_;
};

/// Owns the descriptors that have come with a message.
std::vector<UniqueFd> fds_of(msghdr& message) {
  std::vector<UniqueFd> fds;
  for (auto* head = CMSG_FIRSTHDR(&message); head != nullptr; head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(head) + i * sizeof(int), sizeof(int));
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

Channel::Channel(UniqueFd socket) : socket_(std::move(socket)) {
  const int flags = ::fcntl(fd(), F_GETFL);
  if (flags < 0 || ::fcntl(fd(), F_SETFL, flags | O_NONBLOCK) != 0) {
    throw errno_error("use the connection", "fcntl", errno);
  }
}

void Channel::send(const std::string& text, std::span<const int> fds, const Deadline& deadline,
                   WaitMonitor& monitor) {
  if (text.size() > kLongestFrame || fds.size() > kMostFds) {
    throw runtime_error(
        fmt::format("cannot send a message of {} bytes and {} descriptors: {} and "
                    "{} are the most",
                    text.size(), fds.size(), kLongestFrame, kMostFds));
  }
  std::string head;
  put_number(head, text.size());
  put_number(head, fds.size());
  Sending sending{head, text, fds};
  try {
    while (!send_some(sending)) {
      monitor.poll();
      if (monitor.overdue(deadline)) {
        throw Error(ExitCode::kDeadline,
                    fmt::format("the other end has not read for {}",
                                format_seconds(deadline.allowed().count())),
                    kDeadlineHint);
      }
      pollfd room{fd(), POLLOUT, 0};
      ::poll(&room, 1, kSendPauseMs);
    }
  } catch (...) {
    // Half a frame cannot be taken back, and what follows would be read as its rest.
    if (sending.done > 0) ::shutdown(fd(), SHUT_RDWR);
    throw;
  }
}

/// Sends what there is room for; true when all has gone.
bool Channel::send_some(Sending& sending) const {
  const size_t all = sending.head.size() + sending.text.size();
  while (sending.done < all) {
    std::array<iovec, 2> parts{};
    size_t count = 0;
    size_t skipped = sending.done;
    for (const auto& part : {std::string_view(sending.head), std::string_view(sending.text)}) {
      const auto rest = part.substr(std::min(skipped, part.size()));
      skipped -= part.size() - rest.size();
      // The kernel only reads what it is given to send.
      if (!rest.empty()) parts.at(count++) = {const_cast<char*>(rest.data()), rest.size()};
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    Control control;
    if (sending.done == 0) control.attach_to(message, sending.fds);
    const auto sent = ::sendmsg(fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
      if (errno == EPIPE || errno == ECONNRESET) throw gone("");
      throw errno_error("send a message", "sendmsg", errno);
    }
    sending.done += static_cast<size_t>(sent);
  }
  return true;
}

std::optional<Frame> Channel::receive() {
  if (broken_) throw gone(": it has said what is no message");
  try {
    if (head_.size() < kHeadBytes) {
      if (!fill(head_, kHeadBytes)) return std::nullopt;
      check_head();
    }
    if (!fill(text_, number_at(head_, 0))) return std::nullopt;
    check_fds();
  } catch (const Error& error) {
    if (error.code() != ExitCode::kPeerLost) broken_ = true;
    fds_.clear();
    throw;
  }
  head_.clear();
  return Frame{std::exchange(text_, {}), std::exchange(fds_, {})};
}

/// Reads until `text` has `bytes` bytes; false when no more is there now.
bool Channel::fill(std::string& text, size_t bytes) {
  while (text.size() < bytes) {
    const size_t before = text.size();
    const size_t wanted = std::min(bytes - before, kReadAtOnce);
    text.resize(before + wanted);
    iovec part{text.data() + before, wanted};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    Control control;
    control.attach_to(message);
    const auto count = ::recvmsg(fd(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    const int failure = errno;
    text.resize(before + static_cast<size_t>(std::max<ssize_t>(count, 0)));
    if (count < 0) {
      if (failure == EINTR) continue;
      if (failure == EAGAIN || failure == EWOULDBLOCK) return false;
      if (failure == ECONNRESET) throw gone("");
      throw errno_error("read a message", "recvmsg", failure);
    }
    take_fds(message);
    if (count == 0) throw gone(head_.empty() ? "" : " in the midst of a message");
  }
  return true;
}

void Channel::take_fds(msghdr& message) {
  for (auto& fd : fds_of(message)) fds_.push_back(std::move(fd));
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    if (fds_.size() >= kMostFds) {
      throw request_error(fmt::format("the other end has sent more than {} descriptors", kMostFds),
                          kOtherBuild);
    }
    throw runtime_error(
        fmt::format("process {} has too many open files (ulimit -n): descriptors of a message were "
                    "lost, {} have come",
                    ::getpid(), fds_.size()),
        "raise the limit (ulimit -n; for a rank the hard one, ulimit -Hn)");
  }
  if (fds_.size() > kMostFds) check_fds();
}

void Channel::check_head() const {
  const size_t bytes = number_at(head_, 0);
  const size_t fds = number_at(head_, kNumberBytes);
  if (bytes <= kLongestFrame && fds <= kMostFds) return check_fds();
  throw request_error(fmt::format("the other end announces a message of {} bytes and {} "
                                  "descriptors: {} and {} are the most",
                                  bytes, fds, kLongestFrame, kMostFds),
                      kOtherBuild);
}

void Channel::check_fds() const {
  const size_t announced = head_.size() < kHeadBytes ? 0 : number_at(head_, kNumberBytes);
  if (fds_.size() == announced) return;
  throw request_error(fmt::format("the other end announces a message with {} descriptors, and {} "
                                  "have come",
                                  announced, fds_.size()),
                      kOtherBuild);
}

bool Channel::has_ended() const {
  pollfd ended{socket_.get(), POLLRDHUP, 0};
  return ::poll(&ended, 1, 0) > 0 && (ended.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

void Channel::wait_readable(Seconds longest) const {
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(longest).count();
  constexpr int64_t kLongest = 1 << 30;
  pollfd ready{fd(), POLLIN, 0};
  ::poll(&ready, 1, static_cast<int>(std::clamp<int64_t>(wait, 0, kLongest)));
}

}  // namespace awex::attach
