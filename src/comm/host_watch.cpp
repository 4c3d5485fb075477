#include "comm/host_watch.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include "base/wait.hpp"
#include "comm/waits.hpp"

namespace awex {
namespace {

constexpr double kTellsPerTimeout = 10;
/// Between two looks; more is time in which this rank was stopped, or had other things to do.
constexpr Seconds kLongestStep{1};
constexpr Seconds kShortestStep{0.02};

}  // namespace

/// Rank 0 hears of all other hosts, their first ranks of rank 0 itself, and all others of none.
void HostWatch::find_others() {
  knows_others_ = true;
  if (!world_.is_first_of_node()) return;
  for (int rank = 0; rank < world_.size(); ++rank) {
    const auto& node = world_.node_of(rank);
    if (node == world_.node_of(world_.rank())) continue;
    if (world_.rank() != 0 && node != world_.node_of(0)) continue;
    const auto known = std::find_if(others_.begin(), others_.end(), [&](const Other& other) {
      return world_.node_of(other.ranks.front()) == node;
    });
    if (known == others_.end()) {
      others_.push_back({{rank}});
    } else {
      known->ranks.push_back(rank);
    }
  }
}

void HostWatch::begin() {
  if (!knows_others_) find_others();
  last_look_ = Clock::now();
  for (auto& other : others_) other.silent = Seconds(0);
}

void HostWatch::look() {
  if (!knows_others_) begin();
  if (others_.empty()) return;
  const auto now = Clock::now();
  if (now - last_look_ < kShortestStep) return;
  const Seconds step = std::min<Seconds>(now - last_look_, kLongestStep);
  last_look_ = now;
  for (auto& other : others_) other.silent += step;
  hear();
  if (world_.rank() != 0 && now >= next_tell_) {
    next_tell_ = now + as_duration(world_.timeout() / kTellsPerTimeout);
    tell(0);
  }
  const auto limit = world_.timeout() + (world_.rank() == 0 ? kRankZeroGrace : kOthersGrace);
  for (const auto& other : others_) {
    if (other.silent >= limit) fail_silent(other);
  }
}

void HostWatch::tell(int rank) {
  outbox_.send(bytes_of(std::byte{0}), rank, kHereTag, world_.control());
}

void HostWatch::hear() {
  outbox_.push();
  std::set<int> heard;
  take_letters<std::byte>(kHereTag, world_.control(),
                          [&](std::byte /*empty*/, int from) { heard.insert(from); });
  for (auto& other : others_) {
    const int first = other.ranks.front();
    if (!heard.contains(first)) continue;
    other.silent = Seconds(0);
    if (world_.rank() == 0) tell(first);
  }
}

void HostWatch::fail_silent(const Other& other) {
  std::vector<std::string> names;
  for (const int rank : other.ranks) names.push_back(world_.describe(rank));
  const auto host = world_.node_of(other.ranks.front()).name();
  const auto here = world_.node_of(world_.rank()).name();
  failures_.give_up_on(other.ranks);
  failures_.announce_and_end_job(
      Error(ExitCode::kDeadline,
            fmt::format("host {} has given no sign of life for {} while the job rests: {}", host,
                        format_seconds(world_.timeout().count()), fmt::join(names, ", ")),
            fmt::format("see whether {} is up, whether {} reaches it over the network, and whether "
                        "its first rank is stopped",
                        host, here)));
}

}  // namespace awex
