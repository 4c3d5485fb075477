#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/job.hpp"
#include "comm/mpi_library.hpp"
#include "cycle/options.hpp"
#include "memory/device.hpp"
#include "plan/plan.hpp"

namespace awex {

/// Which role each rank plays; the same on every rank.
struct RoleMap {
  std::vector<Role> role;           ///< By rank.
  std::vector<uint32_t> role_rank;  ///< By rank: position among the ranks of its role.
  std::vector<int> node_position;   ///< By rank: the same, counted on the rank's node alone.
  uint32_t per_role = 0;            ///< Ranks of each role; as many trainers as inference ranks.
};

/// Throws an agreed request error when ranks of a host are in different PID namespaces: they could
/// neither watch each other nor take each other's memory. Collective.
void check_places(Job& job);

/// The request error when a host has not as many trainers as inference ranks: its text lists the
/// ranks of each host. `hosts` and `roles` are by rank.
[[nodiscard]] std::optional<Error> misplaced_ranks(const std::vector<std::string>& hosts,
                                                   const std::vector<Role>& roles);

/// Gives every rank its role: as `requested`, or by position on its node, first half trainers.
/// Throws an agreed request error for odd numbers of ranks and unequal roles on a node. Collective.
[[nodiscard]] RoleMap assign_roles(Job& job, std::optional<Role> requested);

/// The backend that all ranks use: as requested, or cuda where every rank has a GPU and host where
/// none has one, about which rank 0 warns where GPUs are granted. Throws an agreed request error
/// where that cannot be. Collective.
[[nodiscard]] BackendKind choose_backend(Job& job, std::optional<BackendKind> requested);

/// Which ranks share a device, and who this rank's partner is.
struct DeviceMap {
  Placement placement;  ///< Devices numbered by the first rank on them.
  std::vector<uint32_t>
      physical;      ///< By rank: which GPU it is on. GPUs shared by several pairs
                     ///< (--share-gpu) have one number here and several devices there.
  int gpus = 0;      ///< Physical ones.
  int partner = -1;  ///< World rank of the other role on this rank's device.
};

/// Opens this rank's device: the one with its position among its role's ranks on the node.
[[nodiscard]] std::unique_ptr<Device> open_device(const Job& job, const RoleMap& roles,
                                                  BackendKind backend, size_t host_threads);

/// Tells all ranks of this rank's device, lets the job know its peers, and pairs trainers with
/// inference ranks by host and GPU UUID. Throws an agreed request error when two ranks of a role
/// share a GPU without `share_gpu`, or a rank has no partner. Collective.
[[nodiscard]] DeviceMap pair_devices(Job& job, const RoleMap& roles, const Device& device,
                                     bool share_gpu);

/// What a rank has for its host-side work.
struct HostShare {
  size_t threads = 1;  ///< Its share of the processors that it may run on with others of its node.
  /// The ranks that may run on one core alone, though their machines have more; on every rank.
  std::vector<int> one_core_ranks;
};

/// Collective.
[[nodiscard]] HostShare host_share(Job& job);

/// Who the ranks of a job are and what they run on; whatever model they hold, and whatever they do.
/// The same on every rank, but for this rank's device and threads.
struct World {
  RoleMap roles;
  BackendKind backend = BackendKind::kHost;
  size_t host_threads = 1;          ///< HostShare::threads.
  std::vector<int> one_core_ranks;  ///< HostShare::one_core_ranks.
  std::unique_ptr<Device> device;
  DeviceMap devices;
};

/// Opens the devices of ranks that have their roles, and pairs them. Lets the job know its peers.
/// Throws agreed errors. Collective.
[[nodiscard]] World open_world(Job& job, RoleMap roles, const JobOptions& options);

}  // namespace awex
