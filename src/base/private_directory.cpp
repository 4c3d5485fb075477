#include "base/private_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.hpp"

namespace awex {
namespace {

constexpr const char* kSocketName = "socket";
constexpr const char* kTargetName = "job";
constexpr std::string_view kPrivateName = "awex-colocate-";
// Until it is locked, so that nobody takes it for one that was left.
constexpr const char* kUnlockedPattern = "awex-colocate.XXXXXX";

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

bool has_private_name(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash != std::string::npos &&
         path.compare(slash + 1, kPrivateName.size(), kPrivateName) == 0;
}

/// $XDG_RUNTIME_DIR where it is what it should be, and short enough; /tmp elsewhere.
std::string base_directory() {
  const char* named = std::getenv("XDG_RUNTIME_DIR");
  if (named == nullptr || *named != '/') return "/tmp";
  std::string path(named);
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const auto longest = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() + std::strlen(kUnlockedPattern) + std::strlen(kSocketName) + 2 > longest) {
    return "/tmp";
  }
  struct stat status {};
  const bool is_private = ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
                          status.st_uid == ::geteuid() && (status.st_mode & 022U) == 0 &&
                          ::access(path.c_str(), W_OK | X_OK) == 0;
  return is_private ? path : "/tmp";
}

/// Calls `look` with each of this user's private directories, opened, where this process would
/// make them.
template <class Look>
void for_each_private_directory(const Look& look) {
  std::error_code unreadable;
  std::filesystem::directory_iterator entry(base_directory(), unreadable);
  for (; !unreadable && entry != std::filesystem::directory_iterator();
       entry.increment(unreadable)) {
    const auto path = entry->path().string();
    if (!has_private_name(path)) continue;
    const auto directory = open_directory(path);
    if (directory.valid() && is_own_directory(directory)) look(path, directory);
  }
}

/// Whether nobody who lives behind it keeps this process from the lock.
bool can_lock(const UniqueFd& directory, int how) {
  return ::flock(directory.get(), how | LOCK_NB) == 0;
}

}  // namespace

std::string private_socket_path(const std::string& directory) {
  return directory + "/" + kSocketName;
}

UniqueFd open_directory(const std::string& path) {
  return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

PrivateDirectory make_private_directory() {
  remove_abandoned_directories();
  auto unlocked = base_directory() + "/" + kUnlockedPattern;
  // Its name is new, so nobody can have put something there.
  if (::mkdtemp(unlocked.data()) == nullptr) {
    throw cannot(fmt::format("make the job's private directory \"{}\"", unlocked), errno);
  }
  auto path = unlocked;
  path[path.rfind('.')] = kPrivateName.back();
  auto lock = open_directory(unlocked);
  if (!lock.valid() || !is_own_directory(lock) || ::fchmod(lock.get(), 0700) != 0 ||
      !can_lock(lock, LOCK_EX) || ::rename(unlocked.c_str(), path.c_str()) != 0) {
    const int failure = errno;
    ::rmdir(unlocked.c_str());
    throw cannot(fmt::format("lock the job's private directory \"{}\"", unlocked), failure);
  }
  return {std::move(path), std::move(lock)};
}

bool is_abandoned(const std::string& path) {
  const auto directory = open_directory(path);
  if (!directory.valid()) return errno == ENOENT;
  return can_lock(directory, LOCK_SH);
}

void name_private_directory(const std::string& path, const std::string& target) {
  // A link, as it is there as a whole or not at all.
  const auto link = path + "/" + kTargetName;
  if (::symlink(target.c_str(), link.c_str()) != 0) {
    throw cannot(fmt::format("name the private directory \"{}\"", path), errno);
  }
}

std::vector<std::string> private_directory_targets() {
  std::vector<std::string> targets;
  for_each_private_directory([&](const std::string& path, const UniqueFd& directory) {
    std::error_code unnamed;
    const auto target =
        std::filesystem::read_symlink(std::filesystem::path(path) / kTargetName, unnamed);
    if (!unnamed && !can_lock(directory, LOCK_SH)) targets.push_back(target.string());
  });
  std::sort(targets.begin(), targets.end());
  targets.erase(std::unique(targets.begin(), targets.end()), targets.end());
  return targets;
}

void remove_private_directory(const std::string& path) noexcept {
  if (!has_private_name(path)) return;
  const auto directory = open_directory(path);
  if (!directory.valid() || !is_own_directory(directory)) return;
  ::unlinkat(directory.get(), kSocketName, 0);
  ::unlinkat(directory.get(), kTargetName, 0);
  ::rmdir(path.c_str());
}

void remove_abandoned_directories() noexcept {
  try {
    for_each_private_directory([](const std::string& path, const UniqueFd& directory) {
      if (can_lock(directory, LOCK_EX)) remove_private_directory(path);
    });
  } catch (const std::exception&) {  // whoever comes next tidies up
  }
}

}  // namespace awex
