#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "base/units.hpp"
#include "comm/job.hpp"
#include "engine/engine.hpp"
#include "layout/spec.hpp"
#include "memory/device.hpp"
#include "memory/region.hpp"
#include "model/weights.hpp"
#include "transfer/move/remote_copies.hpp"

namespace awex {

/// What a job does. A resident job's `update` and `resume` are the two halves of a whole update.
enum class Command : uint8_t { kUpdate, kOffload, kTransfer, kResume, kHandOver, kTakeBack };

/// As users call it: "update", "offload", "transfer" or "resume".
[[nodiscard]] constexpr const char* command_name(Command command) {
  switch (command) {
    case Command::kUpdate:
    case Command::kHandOver:
      return "update";
    case Command::kOffload:
      return "offload";
    case Command::kTransfer:
      return "transfer";
    case Command::kResume:
    case Command::kTakeBack:
      return "resume";
  }
  return "";
}

/// How a transfer is proven.
enum class Verify : uint8_t {
  kDigest,  ///< Digests of what the trainer holds against what inference holds.
  kFull,    ///< As kDigest, and every byte is compared with its source.
  kOff,
};

/// What a user asks of a whole job: what its ranks are and hold, whatever they do. The same on
/// every rank but for `role`. Plain data: read from text once, by the command line, and checked for
/// sense by the cycle.
struct JobOptions {
  ModelName model;
  std::optional<uint64_t> layers;       ///< Keep the first N layers; at least 1.
  EngineSpec trainer{"megatron:tp=1"};  ///< Layout of the trainer.
  EngineSpec inference{"sglang:tp=1"};  ///< Layout of the inference engine.
  std::optional<Role> role;             ///< This rank's; by position in the node when absent.
  std::optional<BackendKind> backend;   ///< Absent: cuda where there is a GPU, host otherwise.
  bool optimizer = true;                ///< Whether the trainer holds AdamW state.
  uint64_t kv_cache_bytes = uint64_t{64} << 20;  ///< Of each inference rank; 0 for none.
  Seconds timeout{300};                          ///< Of every single wait.
  bool offload = true;                           ///< False: no memory is ever given back.
  ExchangeKind exchange = ExchangeKind::kAuto;   ///< How bytes travel between GPUs.
  bool share_gpu = false;                        ///< Several ranks of a role may be on one GPU.
  std::optional<uint64_t> gpu_memory;  ///< Budget in bytes per GPU for both roles together.
  bool measure_limits = true;          ///< Measure the links' limits to compare phases with.
  bool warm_host_memory = false;       ///< Prepare what offloads need in the background at start.
};

/// Which memory an `offload` or `resume` is about.
struct Scope {
  std::optional<Role> role;                    ///< Absent: of both roles.
  std::array<bool, 3> tags{true, true, true};  ///< By Tag.

  [[nodiscard]] bool has(Role of, Tag tag) const {
    return role.value_or(of) == of && tags.at(static_cast<size_t>(tag));
  }
  constexpr bool operator==(const Scope&) const = default;
};

/// What a user asks of one command. The same on every rank; plain data, to be sent.
struct CommandOptions {
  Command command = Command::kUpdate;
  uint64_t versions = 1;  ///< At least 1; 1 for all commands but kUpdate.
  Verify verify = Verify::kDigest;
  bool train = true;             ///< kHandOver: stand-ins take a training step before it.
  std::optional<Scope> scope{};  ///< kOffload and kResume of a resident job: that memory alone.
  TakenBack taken_back = TakenBack::kAll;  ///< kTakeBack.
};
static_assert(std::is_trivially_copyable_v<CommandOptions>);

/// A job that does one command and ends.
struct Request {
  JobOptions job;
  CommandOptions command;
};

}  // namespace awex
