#pragma once

#include <string>
#include <vector>

#include "base/unique_fd.hpp"

namespace awex {

/// A directory of this user on this host for a socket that nobody else is to reach.
struct PrivateDirectory {
  std::string path;
  /// Held by whoever lives behind the socket, as long as it lives. It is the directory's own lock,
  /// which also keeps those away that tidy /tmp up (systemd-tmpfiles).
  UniqueFd lock;
};

/// A new one (0700), locked, under a short name. Removes those that nobody lives behind any more.
/// Throws a request error where none can be made.
[[nodiscard]] PrivateDirectory make_private_directory();
/// "socket" in it; short enough for a socket's address.
[[nodiscard]] std::string private_socket_path(const std::string& directory);
/// Opens a directory, for its lock; not valid where it cannot be opened.
[[nodiscard]] UniqueFd open_directory(const std::string& path);
/// Whether nobody lives behind it any more: its lock is free, or it is gone. False for others'.
[[nodiscard]] bool is_abandoned(const std::string& path);
/// Notes in a private directory what it belongs to, so that those who look around find it.
void name_private_directory(const std::string& path, const std::string& target);
/// The targets of this user's named directories in which somebody lives, each once, sorted; where
/// make_private_directory would make them in this process.
[[nodiscard]] std::vector<std::string> private_directory_targets();
/// Removes a private directory with its socket and name, and nothing else, as the path may come
/// from a file.
void remove_private_directory(const std::string& path) noexcept;
/// Removes all that processes of this user have left which were killed: those that are not locked.
void remove_abandoned_directories() noexcept;

}  // namespace awex
