#include "memory/blocks_ahead.hpp"

#include <chrono>
#include <system_error>
#include <utility>

#include "base/error.hpp"
#include "base/units.hpp"

namespace awex {
namespace {

constexpr size_t at_a_time(HostSharing sharing) { return sharing == HostSharing::kShared ? 8 : 2; }

}  // namespace

BlocksAhead::BlocksAhead(Device& device, std::vector<uint64_t> sizes_bytes, HostSharing sharing)
    : device_(device), sizes_bytes_(std::move(sizes_bytes)), sharing_(sharing) {
  for (size_t i = 0; i < at_a_time(sharing); ++i) begin();
}

bool BlocksAhead::is_ready() const {
  return making_.at(0).wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

std::unique_ptr<HostBlock> BlocksAhead::next() {
  auto oldest = std::move(making_.at(0));
  making_.pop_front();
  auto block = oldest.get();
  begin();
  return block;
}

void BlocksAhead::begin() {
  if (begun_ == sizes_bytes_.size()) return;
  const uint64_t bytes = sizes_bytes_[begun_];
  try {
    making_.push_back(std::async(std::launch::async,
                                 [this, bytes] { return device_.allocate_host(bytes, sharing_); }));
  } catch (const std::system_error& error) {
    throw runtime_error(
        fmt::format("cannot start the thread that prepares {} of host memory: {}",
                    format_bytes(bytes), error.what()),
        "see the limits of threads and memory: ulimit -u, ulimit -v, and pids.max of the cgroup");
  }
  ++begun_;
}

}  // namespace awex
