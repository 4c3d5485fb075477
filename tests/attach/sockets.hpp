#pragma once

#include <sys/socket.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "base/unique_fd.hpp"

namespace awex::test {

/// Two connected ends.
inline std::pair<UniqueFd, UniqueFd> connected_sockets() {
  int ends[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    throw std::runtime_error("socketpair failed");
  }
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

}  // namespace awex::test
