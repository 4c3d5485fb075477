#include "comm/bell.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <string>

#include "base/error.hpp"

namespace awex {
namespace {

/// An abstract address: a zero byte, then the name.
struct Address {
  sockaddr_un path{};
  socklen_t size = sizeof(sa_family_t);

  Address() { path.sun_family = AF_UNIX; }
  explicit Address(const std::string& name) : Address() {
    std::copy(name.begin(), name.end(), std::begin(path.sun_path) + 1);
    size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  }
  [[nodiscard]] sockaddr* get() { return reinterpret_cast<sockaddr*>(&path); }
  [[nodiscard]] std::string name() const {
    return {std::begin(path.sun_path) + 1, size - offsetof(sockaddr_un, sun_path) - 1};
  }
};

}  // namespace

Bell::Bell() : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
  const std::string attempt = "make the socket by which ranks of a host wake each other";
  if (!socket_.valid()) throw errno_error(attempt, "socket", errno);
  Address address;  // without a name: the kernel chooses one
  if (::bind(socket_.get(), address.get(), address.size) != 0) {
    throw errno_error(attempt, "bind", errno);
  }
  address.size = sizeof(address.path);
  if (::getsockname(socket_.get(), address.get(), &address.size) != 0) {
    throw errno_error(attempt, "getsockname", errno);
  }
  name_ = fixed_text<16>(address.name());
}

void Bell::ring(const BellName& other) const noexcept {
  Address address(text_of(other));
  // Where its queue is full it has been rung already.
  [[maybe_unused]] const auto sent =
      ::sendto(socket_.get(), "", 1, MSG_DONTWAIT | MSG_NOSIGNAL, address.get(), address.size);
}

bool Bell::wait(Seconds longest) const {
  pollfd rung{socket_.get(), POLLIN, 0};
  const int most_ms = static_cast<int>(std::ceil(longest.count() * 1e3));
  if (::poll(&rung, 1, most_ms) != 1) return false;
  std::array<char, 16> nothing{};
  while (::recv(socket_.get(), nothing.data(), nothing.size(), 0) >= 0) {
  }
  return true;
}

}  // namespace awex
