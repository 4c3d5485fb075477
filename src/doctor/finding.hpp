#pragma once

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"

namespace awex {

/// Everything that is looked at, in the order of the report.
enum class Check : uint8_t {
  kLauncher,
  kMpi,
  kNamespaces,
  kClock,
  kGpuGrant,
  kDriver,
  kBackend,
  kRoles,
  kDevice,
  kPairing,
  kPidfd,
  kSocket,
  kSharedMemory,
  kLegacyIpc,
  kPeerAccess,
  kNccl,
  kMemfd,
  kLockedMemory,
  kOpenFiles,
  kHostMemory,
  kDevShm,
  kHugePages,
  kBinding,
  kPtraceScope,
  kSpeed,
};
inline constexpr size_t kChecks = static_cast<size_t>(Check::kSpeed) + 1;

/// As the report calls it: "pidfd_getfd", "open files".
[[nodiscard]] const char* check_name(Check check);

enum class Verdict : uint8_t {
  kPassed,
  kWaived,  ///< An update does without it, as the reason says; a remedy says how to have it.
  kFailed,  ///< An update cannot run.
};

/// "passed", "waived" or "failed".
[[nodiscard]] const char* verdict_name(Verdict verdict);

/// What a check has found on one rank.
struct Finding {
  Verdict verdict = Verdict::kPassed;
  std::string reason;  ///< Short: what is so.
  std::string remedy;  ///< What to do; may be empty.
  /// What was measured, with its unit in the name: {"limit_bytes", 8388608}.
  std::vector<std::pair<std::string, double>> values{};

  bool operator==(const Finding&) const = default;
};

[[nodiscard]] inline Finding passed(std::string reason) {
  return {Verdict::kPassed, std::move(reason), {}};
}
[[nodiscard]] inline Finding waived(std::string reason, std::string remedy = {}) {
  return {Verdict::kWaived, std::move(reason), std::move(remedy)};
}
[[nodiscard]] inline Finding failed(std::string reason, std::string remedy) {
  return {Verdict::kFailed, std::move(reason), std::move(remedy)};
}
/// What an error says, with its hint as the remedy.
[[nodiscard]] inline Finding failed(const Error& error) {
  return failed(error.what(), error.hint());
}
/// The finding with a number that it rests on.
[[nodiscard]] inline Finding with_value(Finding finding, std::string name, double value) {
  finding.values.emplace_back(std::move(name), value);
  return finding;
}

/// By Check.
using Findings = std::array<Finding, kChecks>;

}  // namespace awex
