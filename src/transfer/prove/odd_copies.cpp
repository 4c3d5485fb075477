#include "transfer/prove/odd_copies.hpp"

#include <algorithm>
#include <map>
#include <set>

namespace awex {
namespace {

/// By replica: the digest of the whole copy.
using Totals = std::map<uint32_t, uint64_t>;

std::optional<uint64_t> digest_of_most(const Totals& totals) {
  std::map<uint64_t, size_t> votes;
  for (const auto& [replica, total] : totals) {
    if (2 * ++votes[total] > totals.size()) return total;
  }
  return std::nullopt;
}

}  // namespace

std::vector<int> odd_ranks(std::span<const CopySum> copies, std::optional<uint64_t> truth) {
  Totals totals;
  for (const auto& copy : copies) totals[copy.held.replica] += copy.sum;
  if (!truth) truth = digest_of_most(totals);
  const auto is_right = [&](const CopySum& copy) { return totals[copy.held.replica] == truth; };
  std::map<uint64_t, uint64_t> right_sums;  // by boxes
  for (const auto& copy : copies) {
    if (is_right(copy)) right_sums[copy.held.boxes] = copy.sum;
  }
  if (right_sums.empty()) return {};
  std::set<int> odd;
  for (const auto& copy : copies) {
    if (is_right(copy)) continue;
    const auto right = right_sums.find(copy.held.boxes);
    if (right == right_sums.end() || right->second != copy.sum) odd.insert(copy.rank);
  }
  return {odd.begin(), odd.end()};
}

}  // namespace awex
