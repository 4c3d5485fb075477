#include "base/node_identity.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <fstream>

#include "base/error.hpp"

namespace awex {

NodeIdentity read_node_identity() {
  std::array<char, HOST_NAME_MAX + 1> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) {
    throw errno_error("learn this host's name", "gethostname", errno);
  }
  std::string boot;
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::getline(file, boot);  // stays empty where /proc does not tell
  return {fixed_text<72>(name.data()), fixed_text<40>(boot)};
}

uint64_t own_pid_namespace() {
  struct stat about {};
  return ::stat("/proc/self/ns/pid", &about) == 0 ? about.st_ino : 0;
}

}  // namespace awex
