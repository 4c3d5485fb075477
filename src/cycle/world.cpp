#include "cycle/world.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "base/checked.hpp"
#include "base/fixed_text.hpp"

namespace awex {
namespace {

using HostName = FixedText<64>;

/// What each rank says before roles are known.
struct RoleRequest {
  HostName host;
  int32_t has_role;
  Role role;
};

/// What each rank says of itself and its device.
struct DeviceRecord {
  HostName host;
  int32_t pid;
  int32_t index;
  std::array<uint8_t, 16> uuid;
  FixedText<96> name;
};

std::vector<Role> roles_by_position(const std::vector<HostName>& hosts) {
  std::map<HostName, uint32_t> size;
  for (const auto& host : hosts) ++size[host];
  std::map<HostName, uint32_t> seen;
  std::vector<Role> roles;
  for (const auto& host : hosts) {
    roles.push_back(seen[host]++ < size[host] / 2 ? Role::kTrainer : Role::kInference);
  }
  return roles;
}

void check_role_counts(Job& job, const RoleMap& roles) {
  const auto trainers = std::count(roles.role.begin(), roles.role.end(), Role::kTrainer);
  if (trainers * 2 == job.size()) return;
  job.fail_together(
      request_error(fmt::format("{} ranks are {} trainers and {} inference ranks; every GPU "
                                "needs one of each",
                                job.size(), trainers, job.size() - trainers),
                    "start two ranks a GPU, an even number on every node: mpirun -np 2 for one "
                    "GPU"));
}

std::vector<Peer> make_peers(const RoleMap& roles, const std::vector<DeviceRecord>& records) {
  std::vector<Peer> peers;
  for (size_t rank = 0; rank < records.size(); ++rank) {
    const auto& record = records[rank];
    peers.push_back({.rank = static_cast<int>(rank),
                     .role = roles.role[rank],
                     .role_rank = roles.role_rank[rank],
                     .pid = record.pid,
                     .host = text_of(record.host),
                     .device = {record.uuid, record.index, text_of(record.name)}});
  }
  return peers;
}

/// A GPU, and which of the pairs that share it.
using DeviceKey = std::tuple<HostName, std::array<uint8_t, 16>, uint32_t>;

/// By rank: its GPU, and how many ranks of its role come before it there.
std::vector<DeviceKey> device_keys(const RoleMap& roles, const std::vector<DeviceRecord>& records) {
  std::map<std::tuple<HostName, std::array<uint8_t, 16>, Role>, uint32_t> seen;
  std::vector<DeviceKey> keys;
  for (size_t rank = 0; rank < records.size(); ++rank) {
    const auto& [host, pid, index, uuid, name] = records[rank];
    keys.emplace_back(host, uuid, seen[{host, uuid, roles.role[rank]}]++);
  }
  return keys;
}

void refuse_shared(Job& job, const std::vector<Peer>& peers, const std::vector<DeviceKey>& keys) {
  for (size_t rank = 0; rank < keys.size(); ++rank) {
    if (std::get<2>(keys[rank]) == 0) continue;
    auto first = keys[rank];
    std::get<2>(first) = 0;
    const auto same_role = [&](size_t other) {
      return keys[other] == first && peers[other].role == peers[rank].role;
    };
    size_t other = 0;
    while (!same_role(other)) ++other;
    job.fail_together(request_error(fmt::format("{} and {} are on the same GPU",
                                                peers[other].describe(), peers[rank].describe()),
                                    "start two ranks a GPU (one trainer, one inference); "
                                    "--share-gpu allows more, for tests"));
  }
}

void check_partners(Job& job, const std::vector<DeviceKey>& keys) {
  for (size_t rank = 0; rank < keys.size(); ++rank) {
    if (std::count(keys.begin(), keys.end(), keys[rank]) == 2) continue;
    auto error = request_error("no rank of the other role is on this rank's GPU",
                               "trainer and inference ranks must see the same GPUs in the "
                               "same order; check CUDA_VISIBLE_DEVICES of both");
    error.context() = job.context_of(narrow<int>(rank));
    job.fail_together(error);
  }
}

/// Gives equal keys equal numbers, in the order of their first rank.
template <class Key>
uint32_t number(std::map<Key, uint32_t>& numbers, const Key& key) {
  return numbers.try_emplace(key, narrow<uint32_t>(numbers.size())).first->second;
}

DeviceMap map_devices(Job& job, const RoleMap& roles, const std::vector<DeviceKey>& keys) {
  DeviceMap map;
  std::map<DeviceKey, uint32_t> devices;
  std::map<DeviceKey, uint32_t> gpus;
  std::map<HostName, uint32_t> nodes;
  const auto me = static_cast<size_t>(job.rank());
  for (size_t rank = 0; rank < keys.size(); ++rank) {
    const auto& [host, uuid, turn] = keys[rank];
    const uint32_t device = number(devices, keys[rank]);
    map.physical.push_back(number(gpus, DeviceKey{host, uuid, 0}));
    auto& placement = map.placement;
    if (device == placement.device_node.size()) {
      placement.device_node.push_back(number(nodes, host));
    }
    (roles.role[rank] == Role::kTrainer ? placement.trainer_device : placement.inference_device)
        .push_back(device);
    if (rank != me && keys[rank] == keys[me]) map.partner = static_cast<int>(rank);
  }
  map.gpus = narrow<int>(gpus.size());
  check_partners(job, keys);
  return map;
}

}  // namespace

RoleMap assign_roles(Job& job, std::optional<Role> requested) {
  const RoleRequest mine{fixed_text<64>(job.host()), requested ? 1 : 0,
                         requested.value_or(Role::kTrainer)};
  const auto all = job.all_gather_value(mine, "the roles of all ranks");
  std::vector<HostName> hosts;
  for (const auto& one : all) hosts.push_back(one.host);
  RoleMap roles;
  roles.role = roles_by_position(hosts);
  std::array<uint32_t, 2> counts{};
  std::map<std::pair<HostName, Role>, int> on_node;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    Role& role = roles.role[rank];
    if (all[rank].has_role != 0) role = all[rank].role;
    roles.role_rank.push_back(counts.at(static_cast<size_t>(role))++);
    roles.node_position.push_back(on_node[{all[rank].host, role}]++);
  }
  check_role_counts(job, roles);
  roles.per_role = counts[0];
  return roles;
}

BackendKind choose_backend(Job& job, std::optional<BackendKind> requested) {
  if (requested == BackendKind::kHost) return BackendKind::kHost;
  const auto gpus = job.all_gather_value(cuda_device_count(), "the number of GPUs");
  const auto without = std::find(gpus.begin(), gpus.end(), 0);
  if (without == gpus.end()) return BackendKind::kCuda;
  const bool none_has_one = std::all_of(gpus.begin(), gpus.end(), [](int n) { return n == 0; });
  if (!requested && none_has_one) return BackendKind::kHost;
  auto error = request_error(
      built_with_cuda() ? "this rank sees no GPU" : "this rank's program was built without CUDA",
      "check nvidia-smi and CUDA_VISIBLE_DEVICES there, or choose "
      "--backend host");
  error.context() = job.context_of(narrow<int>(without - gpus.begin()));
  job.fail_together(error);
}

std::unique_ptr<Device> open_device(const Job& job, const RoleMap& roles, BackendKind backend,
                                    size_t host_threads) {
  const int position = roles.node_position[static_cast<size_t>(job.rank())];
  switch (backend) {
    case BackendKind::kHost:
      return make_host_device(position, host_threads);
    case BackendKind::kCuda:
      // Where the launcher shows each rank its own GPU alone, that GPU has index 0.
      return make_cuda_device(position % cuda_device_count(), host_threads);
  }
  throw runtime_error("unknown backend");
}

DeviceMap pair_devices(Job& job, const RoleMap& roles, const Device& device, bool share_gpu) {
  const DeviceRecord mine{fixed_text<64>(job.host()), ::getpid(), device.identity().index,
                          device.identity().uuid, fixed_text<96>(device.identity().name)};
  const auto records = job.all_gather_value(mine, "the devices of all ranks");
  job.set_peers(make_peers(roles, records));
  const auto keys = device_keys(roles, records);
  if (!share_gpu) refuse_shared(job, job.peers(), keys);
  return map_devices(job, roles, keys);
}

size_t host_threads_for(Job& job) {
  struct Processors {
    HostName host;
    cpu_set_t allowed;
  } mine{fixed_text<64>(job.host()), {}};
  CPU_ZERO(&mine.allowed);
  if (::sched_getaffinity(0, sizeof(mine.allowed), &mine.allowed) != 0) {
    throw errno_error("learn the processors of this process", "sched_getaffinity", errno);
  }
  const auto all = job.all_gather_value(mine, "the processors of all ranks");
  const auto sharers = std::count_if(all.begin(), all.end(), [&](const Processors& other) {
    return other.host == mine.host && CPU_EQUAL(&other.allowed, &mine.allowed) != 0;
  });
  // The two ranks of a GPU take turns.
  const auto teams = std::max<size_t>(1, static_cast<size_t>(sharers) / 2);
  return std::max<size_t>(1, static_cast<size_t>(CPU_COUNT(&mine.allowed)) / teams);
}

}  // namespace awex
