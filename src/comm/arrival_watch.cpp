#include "comm/arrival_watch.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

namespace awex {
namespace {

constexpr int kKnownToWakeMs = 100;
constexpr int kUnknownMs = 2;

int option_of(int fd, int name) {
  int value = -1;
  socklen_t size = sizeof(value);
  return ::getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

bool is_tcp(int fd) {
  const int domain = option_of(fd, SO_DOMAIN);
  return (domain == AF_INET || domain == AF_INET6) && option_of(fd, SO_TYPE) == SOCK_STREAM;
}

/// TCP sockets of this process, those that listen, too; none where /proc does not tell.
std::vector<pollfd> tcp_sockets() {
  std::vector<pollfd> sockets;
  std::error_code unreadable;
  std::filesystem::directory_iterator entry("/proc/self/fd", unreadable);
  for (; !unreadable && entry != std::filesystem::directory_iterator();
       entry.increment(unreadable)) {
    const auto name = entry->path().filename().string();
    int fd = -1;
    std::from_chars(name.data(), name.data() + name.size(), fd);
    if (is_tcp(fd)) sockets.push_back({fd, POLLIN, 0});
  }
  return sockets;
}

}  // namespace

/// Finds the sockets to watch. Returns whether something has arrived on one already.
bool ArrivalWatch::find() {
  sockets_ = tcp_sockets();
  ::poll(sockets_.data(), sockets_.size(), 0);
  std::set<int> readable;
  for (const auto& socket : sockets_) {
    if (socket.revents != 0) readable.insert(socket.fd);
  }
  const bool is_new =
      !std::includes(left_alone_.begin(), left_alone_.end(), readable.begin(), readable.end());
  left_alone_ = std::move(readable);
  sockets_.erase(std::remove_if(sockets_.begin(), sockets_.end(),
                                [](const pollfd& socket) { return socket.revents != 0; }),
                 sockets_.end());
  return is_new;
}

bool ArrivalWatch::sleep(const Bell& bell) {
  slept_ = true;
  woken_ = !found_ && find();
  if (woken_) return true;
  found_ = true;
  sockets_.push_back({bell.fd(), POLLIN, 0});
  woken_ = ::poll(sockets_.data(), sockets_.size(), wakes_ ? kKnownToWakeMs : kUnknownMs) > 0;
  const bool is_rung = (sockets_.back().revents & POLLIN) != 0;
  if (is_rung) (void)bell.wait(Seconds(0));
  sockets_.pop_back();
  wakes_ = wakes_ || (woken_ && !is_rung);  // signs of life of other hosts come now and then
  if (woken_) found_ = false;               // others may have come, or gone
  return woken_;
}

}  // namespace awex
