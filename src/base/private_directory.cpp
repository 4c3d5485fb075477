#include "base/private_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/error.hpp"

namespace awex {
namespace {

constexpr const char* kSocketName = "socket";
constexpr const char* kPrivateName = "awex-colocate-";
constexpr const char* kPrivatePattern = "awex-colocate-XXXXXX";

Error cannot(const std::string& attempt, int error_number) {
  return request_error(
      fmt::format("cannot {}: {} ({})", attempt, std::strerror(error_number), error_number),
      "set XDG_RUNTIME_DIR to a directory of your own on this host");
}

/// Whether `directory` is its own: others' links are not followed.
bool is_own_directory(const UniqueFd& directory) {
  struct stat status {};
  return ::fstat(directory.get(), &status) == 0 && S_ISDIR(status.st_mode) &&
         status.st_uid == ::geteuid();
}

/// $XDG_RUNTIME_DIR where it is what it should be, and short enough; /tmp elsewhere.
std::string base_directory() {
  const char* named = std::getenv("XDG_RUNTIME_DIR");
  if (named == nullptr || *named != '/') return "/tmp";
  std::string path(named);
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const auto longest = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() + std::strlen(kPrivatePattern) + std::strlen(kSocketName) + 2 > longest) {
    return "/tmp";
  }
  struct stat status {};
  const bool is_private = ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
                          status.st_uid == ::geteuid() && (status.st_mode & 022U) == 0 &&
                          ::access(path.c_str(), W_OK | X_OK) == 0;
  return is_private ? path : "/tmp";
}

}  // namespace

std::string private_socket_path(const std::string& directory) {
  return directory + "/" + kSocketName;
}

UniqueFd open_directory(const std::string& path) {
  return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

std::string make_private_directory() {
  auto path = base_directory() + "/" + kPrivatePattern;
  // Its name is new, so nobody can have put something there.
  if (::mkdtemp(path.data()) == nullptr) {
    throw cannot(fmt::format("make the job's private directory \"{}\"", path), errno);
  }
  return path;
}

UniqueFd lock_private_directory(const std::string& path) {
  auto directory = open_directory(path);
  if (!directory.valid() || !is_own_directory(directory) || ::fchmod(directory.get(), 0700) != 0 ||
      ::flock(directory.get(), LOCK_EX | LOCK_NB) != 0) {
    throw cannot(fmt::format("lock the job's private directory \"{}\"", path), errno);
  }
  return directory;
}

void remove_private_directory(const std::string& path) noexcept {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos ||
      path.compare(slash + 1, std::strlen(kPrivateName), kPrivateName) != 0) {
    return;
  }
  const auto directory = open_directory(path);
  if (!directory.valid() || !is_own_directory(directory)) return;
  ::unlinkat(directory.get(), kSocketName, 0);
  ::rmdir(path.c_str());
}

}  // namespace awex
