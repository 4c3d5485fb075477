#include "cycle/world.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "base/checked.hpp"
#include "base/fixed_text.hpp"
#include "base/launch.hpp"
#include "base/log.hpp"
#include "base/node_identity.hpp"
#include "memory/gpu_facts.hpp"

namespace awex {
namespace {

/// What each rank says before roles are known.
struct RoleRequest {
  int32_t has_role;
  Role role;
};

/// What each rank says of itself and its device.
struct DeviceRecord {
  int32_t pid;
  int32_t index;
  std::array<uint8_t, 16> uuid;
  FixedText<96> name;
};

std::string first_line(const char* path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

const char* const kShareProcesses =
    "start both roles in one container, or let their containers share processes and the host's "
    "name: docker or podman run --pid=host --uts=host, in Kubernetes shareProcessNamespace: true";

std::vector<NodeIdentity> nodes_of(const Job& job) {
  std::vector<NodeIdentity> nodes;
  for (int rank = 0; rank < job.size(); ++rank) nodes.push_back(job.node_of(rank));
  return nodes;
}

std::vector<Role> roles_by_position(const std::vector<NodeIdentity>& nodes) {
  std::map<NodeIdentity, uint32_t> size;
  for (const auto& node : nodes) ++size[node];
  std::map<NodeIdentity, uint32_t> seen;
  std::vector<Role> roles;
  for (const auto& node : nodes) {
    roles.push_back(seen[node]++ < size[node] / 2 ? Role::kTrainer : Role::kInference);
  }
  return roles;
}

/// "2 on alpha, 3 on beta", the first hosts of many.
std::string ranks_by_host(const std::vector<std::string>& hosts) {
  constexpr size_t kMostNamed = 16;
  std::map<std::string, int> counts;
  for (const auto& host : hosts) ++counts[host];
  std::vector<std::string> parts;
  for (const auto& [host, count] : counts) {
    if (parts.size() == kMostNamed) {
      parts.push_back(fmt::format("and {} more hosts", counts.size() - kMostNamed));
      break;
    }
    parts.push_back(fmt::format("{} on {}", count, host));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string same_on_every_node() {
  return fmt::format(
      "start two ranks a GPU, as many on every node: {} for one GPU a node, {} for "
      "eight",
      per_node_command(this_launch(), "2"), per_node_command(this_launch(), "16"));
}

std::vector<std::string> names_of(const std::vector<NodeIdentity>& nodes) {
  std::vector<std::string> names;
  for (const auto& node : nodes) names.push_back(node.name());
  return names;
}

/// Whether two ranks are on one machine under different host names: in containers.
bool are_in_containers(const std::vector<NodeIdentity>& nodes) {
  return std::any_of(nodes.begin(), nodes.end(), [&](const NodeIdentity& one) {
    return std::any_of(nodes.begin(), nodes.end(), [&](const NodeIdentity& other) {
      return one != other && one.is_same_machine(other);
    });
  });
}

std::vector<Peer> make_peers(const Job& job, const RoleMap& roles,
                             const std::vector<DeviceRecord>& records) {
  std::vector<Peer> peers;
  for (size_t rank = 0; rank < records.size(); ++rank) {
    const auto& record = records[rank];
    peers.push_back({.rank = static_cast<int>(rank),
                     .role = roles.role[rank],
                     .role_rank = roles.role_rank[rank],
                     .pid = record.pid,
                     .node = job.node_of(static_cast<int>(rank)),
                     .device = {record.uuid, record.index, text_of(record.name)}});
  }
  return peers;
}

/// A GPU, and which of the pairs that share it.
using DeviceKey = std::tuple<NodeIdentity, std::array<uint8_t, 16>, uint32_t>;

/// By rank: its GPU, and how many ranks of its role come before it there.
std::vector<DeviceKey> device_keys(const Job& job, const RoleMap& roles,
                                   const std::vector<DeviceRecord>& records) {
  std::map<std::tuple<NodeIdentity, std::array<uint8_t, 16>, Role>, uint32_t> seen;
  std::vector<DeviceKey> keys;
  for (size_t rank = 0; rank < records.size(); ++rank) {
    const auto& node = job.node_of(static_cast<int>(rank));
    const auto& uuid = records[rank].uuid;
    keys.emplace_back(node, uuid, seen[{node, uuid, roles.role[rank]}]++);
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
    std::vector<std::string> hosts;
    for (const auto& peer : peers) hosts.push_back(peer.node.name());
    job.fail_together(request_error(
        fmt::format("{} and {} are on the same GPU; ranks: {}", peers[other].describe(),
                    peers[rank].describe(), ranks_by_host(hosts)),
        fmt::format(
            "start two ranks a GPU (one trainer, one inference), with eight GPUs a node {}; "
            "--share-gpu allows more, for tests",
            per_node_command(this_launch(), "16"))));
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
  std::map<NodeIdentity, uint32_t> nodes;
  const auto me = static_cast<size_t>(job.rank());
  for (size_t rank = 0; rank < keys.size(); ++rank) {
    const auto& [node, uuid, turn] = keys[rank];
    const uint32_t device = number(devices, keys[rank]);
    map.physical.push_back(number(gpus, DeviceKey{node, uuid, 0}));
    auto& placement = map.placement;
    if (device == placement.device_node.size()) {
      placement.device_node.push_back(number(nodes, node));
    }
    (roles.role[rank] == Role::kTrainer ? placement.trainer_device : placement.inference_device)
        .push_back(device);
    if (rank != me && keys[rank] == keys[me]) map.partner = static_cast<int>(rank);
  }
  map.gpus = narrow<int>(gpus.size());
  check_partners(job, keys);
  return map;
}

/// What each rank says of the GPUs that it sees and was granted.
struct GpuRecord {
  int32_t gpus;
  FixedText<256> granted;
  FixedText<128> why_none;
};

void warn_of_unused_gpus(Job& job, const std::vector<GpuRecord>& records) {
  if (job.rank() != 0) return;
  const auto granted = std::find_if(records.begin(), records.end(), [](const GpuRecord& record) {
    return record.granted.front() != '\0';
  });
  if (granted == records.end()) return;
  log::warning(fmt::format(
      "rank {} is granted GPUs ({}), but sees none: {}. The update runs in host memory; --backend "
      "cuda makes this an error, --backend host says that it is meant",
      granted - records.begin(), text_of(granted->granted), text_of(granted->why_none)));
}

/// Processors in a list of the kernel: "0-3,8".
std::vector<int> processors_in(const std::string& list) {
  std::vector<int> processors;
  const char* at = list.data();
  const char* end = at + list.size();
  while (at < end) {
    int first = 0;
    auto parsed = std::from_chars(at, end, first);
    if (parsed.ec != std::errc{}) break;
    int last = first;
    if (parsed.ptr < end && *parsed.ptr == '-') {
      parsed = std::from_chars(parsed.ptr + 1, end, last);
      if (parsed.ec != std::errc{}) break;
    }
    for (int processor = first; processor <= last; ++processor) processors.push_back(processor);
    at = parsed.ptr + 1;
  }
  return processors;
}

/// Whether the processors of `allowed` are one core's, of a machine that has more.
bool is_one_core(const cpu_set_t& allowed) {
  int first = 0;
  while (first < CPU_SETSIZE && CPU_ISSET(first, &allowed) == 0) ++first;
  const auto threads = processors_in(first_line(
      fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", first).c_str()));
  cpu_set_t core{};
  CPU_SET(first, &core);
  for (const int thread : threads) CPU_SET(thread, &core);
  cpu_set_t both{};
  CPU_AND(&both, &core, &allowed);
  return CPU_EQUAL(&both, &allowed) != 0 && ::sysconf(_SC_NPROCESSORS_ONLN) > CPU_COUNT(&core);
}

}  // namespace

std::optional<Error> misplaced_ranks(const std::vector<std::string>& hosts,
                                     const std::vector<Role>& roles) {
  struct Counts {
    int trainers = 0;
    int inference = 0;
  };
  std::map<std::string, Counts> counts;
  for (size_t rank = 0; rank < hosts.size(); ++rank) {
    auto& here = counts[hosts[rank]];
    ++(roles[rank] == Role::kTrainer ? here.trainers : here.inference);
  }
  std::vector<std::string> uneven;
  for (const auto& [host, here] : counts) {
    if (here.trainers == here.inference) continue;
    uneven.push_back(fmt::format("{} has {} trainer{} and {} inference", host, here.trainers,
                                 here.trainers == 1 ? "" : "s", here.inference));
    if (uneven.size() == 4) break;
  }
  if (uneven.empty()) return std::nullopt;
  return request_error(
      fmt::format("every GPU needs a trainer and an inference rank, but {}; of {} ranks: {}",
                  fmt::join(uneven, ", "), hosts.size(), ranks_by_host(hosts)),
      same_on_every_node());
}

void check_places(Job& job) {
  const auto all = job.all_gather_value(own_pid_namespace(), "the pid namespaces of all ranks");
  std::map<NodeIdentity, size_t> first;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const auto& node = job.node_of(static_cast<int>(rank));
    const auto other = first.try_emplace(node, rank).first->second;
    const auto one = all[other];
    const auto two = all[rank];
    if (one == two || one == 0 || two == 0) continue;
    job.fail_together(request_error(
        fmt::format("rank {} and rank {} on host {} are in different PID namespaces (containers): "
                    "they cannot see each other's processes",
                    other, rank, node.name()),
        kShareProcesses));
  }
}

RoleMap assign_roles(Job& job, std::optional<Role> requested) {
  const RoleRequest mine{requested ? 1 : 0, requested.value_or(Role::kTrainer)};
  const auto all = job.all_gather_value(mine, "the roles of all ranks");
  const auto nodes = nodes_of(job);
  RoleMap roles;
  roles.role = roles_by_position(nodes);
  std::array<uint32_t, 2> counts{};
  std::map<std::pair<NodeIdentity, Role>, int> on_node;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    Role& role = roles.role[rank];
    if (all[rank].has_role != 0) role = all[rank].role;
    roles.role_rank.push_back(counts.at(static_cast<size_t>(role))++);
    roles.node_position.push_back(on_node[{nodes[rank], role}]++);
  }
  if (auto error = misplaced_ranks(names_of(nodes), roles.role)) {
    if (are_in_containers(nodes)) {
      *error = request_error(error->what(),
                             fmt::format("{}; if the hosts are containers of one machine, {}",
                                         error->hint(), kShareProcesses));
    }
    job.fail_together(*error);
  }
  roles.per_role = counts[0];
  return roles;
}

BackendKind choose_backend(Job& job, std::optional<BackendKind> requested) {
  if (requested == BackendKind::kHost) return BackendKind::kHost;
  const int mine = cuda_device_count();
  const auto all =
      job.all_gather_value(GpuRecord{mine, fixed_text<256>(granted_gpus()),
                                     fixed_text<128>(mine == 0 ? why_no_cuda_device() : "")},
                           "the number of GPUs");
  const auto sees_none = [](const GpuRecord& record) { return record.gpus == 0; };
  const auto without = std::find_if(all.begin(), all.end(), sees_none);
  if (without == all.end()) return BackendKind::kCuda;
  if (!requested && std::all_of(all.begin(), all.end(), sees_none)) {
    warn_of_unused_gpus(job, all);
    return BackendKind::kHost;
  }
  auto error = request_error(
      built_with_cuda() ? "this rank sees no GPU" : "this rank's program was built without CUDA",
      "check nvidia-smi and CUDA_VISIBLE_DEVICES there, or choose "
      "--backend host");
  error.context() = job.context_of(narrow<int>(without - all.begin()));
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
  const DeviceRecord mine{::getpid(), device.identity().index, device.identity().uuid,
                          fixed_text<96>(device.identity().name)};
  const auto records = job.all_gather_value(mine, "the devices of all ranks");
  job.set_peers(make_peers(job, roles, records));
  const auto keys = device_keys(job, roles, records);
  if (!share_gpu) refuse_shared(job, job.peers(), keys);
  return map_devices(job, roles, keys);
}

HostShare host_share(Job& job) {
  struct Processors {
    cpu_set_t allowed;
    int32_t one_core;
  } mine{{}, 0};
  CPU_ZERO(&mine.allowed);
  if (::sched_getaffinity(0, sizeof(mine.allowed), &mine.allowed) != 0) {
    throw errno_error("learn the processors of this process", "sched_getaffinity", errno);
  }
  mine.one_core = is_one_core(mine.allowed) ? 1 : 0;
  const auto all = job.all_gather_value(mine, "the processors of all ranks");
  size_t sharers = 0;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const bool shares = job.node_of(static_cast<int>(rank)) == job.node() &&
                        CPU_EQUAL(&all[rank].allowed, &mine.allowed) != 0;
    sharers += shares ? 1 : 0;
  }
  // The two ranks of a GPU take turns.
  const auto teams = std::max<size_t>(1, sharers / 2);
  HostShare share;
  share.threads = std::max<size_t>(1, static_cast<size_t>(CPU_COUNT(&mine.allowed)) / teams);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].one_core != 0) share.one_core_ranks.push_back(narrow<int>(rank));
  }
  return share;
}

World open_world(Job& job, RoleMap roles, const JobOptions& options) {
  World world;
  world.roles = std::move(roles);
  world.backend = choose_backend(job, options.backend);
  auto share = host_share(job);
  world.host_threads = share.threads;
  world.one_core_ranks = std::move(share.one_core_ranks);
  job.do_and_agree(
      [&] { world.device = open_device(job, world.roles, world.backend, world.host_threads); });
  world.devices = pair_devices(job, world.roles, *world.device, options.share_gpu);
  return world;
}

}  // namespace awex
