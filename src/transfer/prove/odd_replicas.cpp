#include "transfer/prove/odd_replicas.hpp"

#include <algorithm>
#include <map>
#include <set>

namespace awex {
namespace {

/// By replica: the digest of the whole replica.
using Totals = std::map<uint32_t, uint64_t>;

std::optional<uint64_t> digest_of_most(const Totals& totals) {
  std::map<uint64_t, size_t> votes;
  for (const auto& [replica, total] : totals) {
    if (2 * ++votes[total] > totals.size()) return total;
  }
  return std::nullopt;
}

}  // namespace

std::vector<int> odd_ranks(std::span<const ReplicaSum> replicas, std::optional<uint64_t> truth) {
  Totals totals;
  for (const auto& replica : replicas) totals[replica.held.replica] += replica.sum;
  if (!truth) truth = digest_of_most(totals);
  const auto is_right = [&](const ReplicaSum& replica) {
    return totals[replica.held.replica] == truth;
  };
  std::map<uint64_t, uint64_t> right_sums;  // by boxes
  for (const auto& replica : replicas) {
    if (is_right(replica)) right_sums[replica.held.boxes] = replica.sum;
  }
  if (right_sums.empty()) return {};
  std::set<int> odd;
  for (const auto& replica : replicas) {
    if (is_right(replica)) continue;
    const auto right = right_sums.find(replica.held.boxes);
    if (right == right_sums.end() || right->second != replica.sum) odd.insert(replica.rank);
  }
  return {odd.begin(), odd.end()};
}

}  // namespace awex
