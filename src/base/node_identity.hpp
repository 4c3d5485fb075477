#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>

#include "base/fixed_text.hpp"

namespace awex {

/// The machine that a process runs on: what "the same host" means everywhere. Two processes are on
/// one host when their identities are equal: then they share memory and GPUs, and (as
/// check_places makes sure) see each other's pids. Plain data.
struct NodeIdentity {
  FixedText<72> host{};  ///< Its name. Containers of one machine count as hosts of their own.
  FixedText<40> boot{};  ///< Which start of which kernel, as machines may have the same name.

  [[nodiscard]] std::string name() const { return text_of(host); }
  /// Whether one kernel runs both, under whatever names.
  [[nodiscard]] bool is_same_machine(const NodeIdentity& other) const {
    return boot.front() != '\0' && boot == other.boot;
  }
  bool operator==(const NodeIdentity&) const = default;
  bool operator<(const NodeIdentity& other) const {
    return std::tie(host, boot) < std::tie(other.host, other.boot);
  }
};
static_assert(std::is_trivially_copyable_v<NodeIdentity>);

/// This process's. Throws Error(kRuntime).
[[nodiscard]] NodeIdentity read_node_identity();

/// Which PID namespace this process is in: those in one see each other's pids. 0 where /proc does
/// not tell.
[[nodiscard]] uint64_t own_pid_namespace();

}  // namespace awex
