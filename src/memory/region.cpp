#include "memory/region.hpp"

#include <algorithm>
#include <exception>
#include <numeric>
#include <optional>
#include <utility>

#include "base/log.hpp"

namespace awex {
namespace {

/// Calls `move`; an error from it gets the tag as context.
template <class Move>
RegionChange about_tag(Tag tag, const Move& move) {
  try {
    return move();
  } catch (Error& error) {
    error.context().tag = tag_name(tag);
    throw;
  }
}

/// A chunk on its way to host memory.
struct InFlight {
  uint64_t chunk;
  QueueEvent event;
};

}  // namespace

const char* state_name(RegionState state) {
  switch (state) {
    case RegionState::kDiscarded:
      return "discarded";
    case RegionState::kResident:
      return "resident";
    case RegionState::kOffloading:
      return "offloading";
    case RegionState::kOffloaded:
      return "offloaded";
    case RegionState::kResuming:
      return "resuming";
  }
  return "unknown";
}

WorkProgress host_memory_progress(uint64_t done_bytes, uint64_t all_bytes) {
  return {"preparing host memory", "", done_bytes, all_bytes, done_bytes == all_bytes};
}

Region::Region(Device& device, std::string name, Tag tag, uint64_t bytes, MemoryLedger* ledger,
               HostSharing sharing)
    : device_(device),
      ledger_(ledger),
      name_(std::move(name)),
      tag_(tag),
      sharing_(sharing),
      range_(device.reserve(name_, bytes)) {
  chunks_.resize(range_->chunks());
}

RegionChange Region::take(const Deadline& deadline, WaitMonitor& monitor) {
  if (state_ == RegionState::kResident) return {};
  return about_tag(tag_, [&]() -> RegionChange {
    // A resume that failed may end as resident as well, but not by a take, which brings no bytes.
    if (state_ != RegionState::kDiscarded) throw illegal_move(RegionState::kResident);
    enter(RegionState::kResident);
    uint64_t taken = taken_chunks();
    try {
      while (taken < chunks_.size()) {
        reserve(taken, deadline, monitor);
        uint64_t reserved = taken + 1;
        while (reserved < chunks_.size() && try_reserve(reserved)) ++reserved;
        take_reserved(taken, reserved - taken);
        taken = reserved;
      }
    } catch (...) {
      state_ = RegionState::kDiscarded;
      try {
        if (taken > 0) release_chunks(0, taken);
      } catch (const std::exception& error) {
        log::warning(fmt::format("after a failed take: {}", error.what()));
      }
      throw;
    }
    return {.changed = true};
  });
}

RegionChange Region::discard() {
  if (state_ == RegionState::kDiscarded && held_bytes() == 0) return {};
  return about_tag(tag_, [&]() -> RegionChange {
    enter(RegionState::kDiscarded);
    release_chunks(0, taken_chunks());
    return {.changed = true};
  });
}

RegionChange Region::offload(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                             const ChunkLeaving& leaving, uint64_t enough_bytes,
                             const ChunkCopied& copied) {
  if (state_ == RegionState::kOffloaded) return {};
  return about_tag(tag_, [&] {
    if (state_ == RegionState::kResident) {
      for (auto& chunk : chunks_) chunk.has_copy = false;  // of an earlier offload
    }
    enter(RegionState::kOffloading);
    RegionChange change{.changed = true};
    const auto next = next_to_leave(enough_bytes);
    BlocksAhead ahead(device_, missing_backups(next), sharing_);
    const auto give_back = [&](uint64_t chunk) {
      if (copied) copied(chunk);
      chunks_[chunk].bytes_in_host = chunks_[chunk].has_copy = true;
      release_chunks(chunk, 1);
    };
    // Chunks are shown behind their copies: beside them, work on the first would begin with the
    // offload, when another process is likely to use the device (to transfer weights, say).
    const auto settle = [&](const InFlight& copy, bool is_last) {
      if (leaving && is_last) leaving(copy.chunk);  // no later copy is left to hide it behind
      queue.wait(copy.event, describe_move("offload", copy.chunk), deadline, monitor);
      if (leaving && !is_last) leaving(copy.chunk);
      give_back(copy.chunk);
    };
    std::optional<InFlight> behind;
    for (const uint64_t chunk : next) {
      if (chunks_[chunk].bytes_in_host) {
        give_back(chunk);
        continue;
      }
      if (!chunks_[chunk].host) {
        wait_until([&] { return ahead.is_ready(); }, describe_move("host memory", chunk), deadline,
                   monitor);
        keep_backup(chunk, ahead.next());
        monitor.progressed(host_memory_progress(host_bytes(), bytes()));
      }
      const auto host = chunks_[chunk].host->bytes();
      queue.copy(host.data(), chunk_data(chunk), host.size());
      change.moved_bytes += host.size();
      const auto before = std::exchange(behind, InFlight{chunk, queue.record()});
      if (before) settle(*before, /*is_last=*/false);
    }
    if (behind) settle(*behind, /*is_last=*/true);
    if (held_bytes() == 0) enter(RegionState::kOffloaded);
    return change;
  });
}

RegionChange Region::resume(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                            const ChunkArrived& arrived) {
  if (state_ == RegionState::kResident) return {};
  if (state_ == RegionState::kDiscarded) return take(deadline, monitor);
  return about_tag(tag_, [&] {
    enter(RegionState::kResuming);
    RegionChange change{.changed = true};
    std::vector<InFlight> coming;
    for (uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
      if (!chunks_[chunk].bytes_in_host) continue;
      monitor.poll();
      if (!range_->is_taken(chunk)) {
        reserve(chunk, deadline, monitor);
        take_reserved(chunk, 1);
      }
      const auto host = backup(chunk);
      queue.copy(chunk_data(chunk), host.data(), host.size());
      change.moved_bytes += host.size();
      coming.push_back({chunk, queue.record()});
    }
    for (const auto& copy : coming) {
      queue.wait(copy.event, describe_move("resume", copy.chunk), deadline, monitor);
      if (arrived) arrived(copy.chunk);
    }
    for (auto& chunk : chunks_) chunk.bytes_in_host = false;
    enter(RegionState::kResident);
    return change;
  });
}

RegionChange Region::bring_back(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                                const ChunkArrived& arrived) {
  return about_tag(tag_, [&] {
    if (state_ != RegionState::kResident || !has_copy()) {
      throw runtime_error(
          fmt::format("cannot bring \"{}\" ({}, {}) back to what it was: no whole copy of it is in "
                      "host memory",
                      name_, tag_name(tag_), state_name(state_)),
          "start from a checkpoint");
    }
    RegionChange change{.changed = true};
    std::vector<InFlight> coming;
    for (uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
      const auto host = backup(chunk);
      queue.copy(chunk_data(chunk), host.data(), host.size());
      change.moved_bytes += host.size();
      coming.push_back({chunk, queue.record()});
    }
    for (const auto& copy : coming) {
      queue.wait(copy.event, describe_move("return", copy.chunk), deadline, monitor);
      if (arrived) arrived(copy.chunk);
    }
    return change;
  });
}

RegionChange Region::back_up(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor) {
  return about_tag(tag_, [&] {
    if (state_ != RegionState::kResident) {
      throw runtime_error(fmt::format("cannot back \"{}\" ({}, {}) up: it is not on the device",
                                      name_, tag_name(tag_), state_name(state_)));
    }
    for (auto& chunk : chunks_) chunk.has_copy = false;
    prepare_backup();
    RegionChange change{.changed = true};
    for (uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
      const auto host = chunks_[chunk].host->bytes();
      queue.copy(host.data(), chunk_data(chunk), host.size());
      change.moved_bytes += host.size();
      queue.finish(describe_move("copy", chunk), deadline, monitor);
      chunks_[chunk].has_copy = true;
      monitor.progressed(host_memory_progress(bytes(), bytes()));
    }
    return change;
  });
}

bool Region::has_copy() const {
  return std::all_of(chunks_.begin(), chunks_.end(),
                     [](const Chunk& chunk) { return chunk.has_copy; });
}

void Region::prepare_backup(const std::stop_token& stop) {
  if (stop.stop_requested()) return;
  std::vector<uint64_t> all(chunks_.size());
  std::iota(all.begin(), all.end(), uint64_t{0});
  BlocksAhead ahead(device_, missing_backups(all), sharing_);
  for (uint64_t chunk = 0; chunk < chunks_.size() && !stop.stop_requested(); ++chunk) {
    if (!chunks_[chunk].host) keep_backup(chunk, ahead.next());
  }
}

std::span<const std::byte> Region::backup(uint64_t chunk) const {
  const auto& host = chunks_.at(chunk).host;
  return host ? host->bytes() : std::span<std::byte>();
}

int Region::backup_fd(uint64_t chunk) const {
  const auto& host = chunks_.at(chunk).host;
  if (host && host->fd() >= 0) return host->fd();
  throw runtime_error(fmt::format("cannot share the host memory of {}: it is not there, or private",
                                  range_->chunking().describe(chunk, 1)));
}

Error Region::illegal_move(RegionState to) const {
  return runtime_error(
      fmt::format("cannot move \"{}\" ({}, {}) from {} to {}", name_, tag_name(tag_),
                  format_bytes(bytes()), state_name(state_), state_name(to)),
      "resume what is offloaded before using or discarding it; take what is discarded before "
      "offloading it");
}

void Region::enter(RegionState to) {
  if (!is_legal_move(state_, to)) throw illegal_move(to);
  state_ = to;
}

uint64_t Region::lacking_bytes() const {
  const auto& chunking = range_->chunking();
  return chunking.held_bytes(0, chunking.count()) - range_->held_bytes();
}

void Region::reserve(uint64_t chunk, const Deadline& deadline, WaitMonitor& monitor) {
  if (ledger_ == nullptr) return;
  ledger_->reserve(range_->chunking().held_bytes(chunk, 1), fmt::format("\"{}\"", name_), deadline,
                   monitor);
}

bool Region::try_reserve(uint64_t chunk) {
  return ledger_ == nullptr || ledger_->try_reserve(range_->chunking().held_bytes(chunk, 1));
}

/// Takes chunks that are reserved, or unbooks them.
void Region::take_reserved(uint64_t first, uint64_t count) {
  try {
    range_->take_chunks(first, count);
  } catch (...) {
    if (ledger_ != nullptr) ledger_->release(range_->chunking().held_bytes(first, count));
    throw;
  }
}

/// How many of a discarded or resident region's chunks are taken: the first ones.
uint64_t Region::taken_chunks() const {
  uint64_t taken = 0;
  while (taken < chunks_.size() && range_->is_taken(taken)) ++taken;
  return taken;
}

/// Unbooks what is no longer taken, also when giving it back has failed.
void Region::release_chunks(uint64_t first, uint64_t count) {
  const uint64_t held = range_->held_bytes();
  std::exception_ptr failure;
  try {
    range_->release_chunks(first, count);
  } catch (...) {
    failure = std::current_exception();
  }
  if (ledger_ != nullptr) ledger_->release(held - range_->held_bytes());
  if (failure) std::rethrow_exception(failure);
}

/// The first chunks that hold device memory, `enough_bytes` of it together, or all.
std::vector<uint64_t> Region::next_to_leave(uint64_t enough_bytes) const {
  std::vector<uint64_t> next;
  uint64_t bytes = 0;
  for (uint64_t chunk = 0; chunk < chunks_.size() && bytes < enough_bytes; ++chunk) {
    if (!range_->is_taken(chunk)) continue;
    next.push_back(chunk);
    bytes += range_->chunking().held_bytes(chunk, 1);
  }
  return next;
}

/// Sizes of the host blocks that these chunks have none of.
std::vector<uint64_t> Region::missing_backups(std::span<const uint64_t> chunks) const {
  std::vector<uint64_t> sizes;
  for (const uint64_t chunk : chunks) {
    if (!chunks_[chunk].host) sizes.push_back(range_->chunking().used_bytes(chunk));
  }
  return sizes;
}

void Region::keep_backup(uint64_t chunk, std::unique_ptr<HostBlock> host) {
  host_bytes_ += host->bytes().size();
  chunks_[chunk].host = std::move(host);
}

std::string Region::describe_move(const char* move, uint64_t chunk) const {
  return fmt::format("the {} of \"{}\" (chunk {} of {})", move, name_, chunk + 1, chunks_.size());
}

std::byte* Region::chunk_data(uint64_t chunk) const {
  return data() + range_->chunking().begin(chunk);
}

}  // namespace awex
