#include "attach/library/host_copy.hpp"

#include <algorithm>
#include <span>
#include <thread>
#include <utility>

#include "attach/message.hpp"
#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "model/digest.hpp"

namespace awex::attach {
namespace {

constexpr unsigned kMostThreads = 16;

}  // namespace

HostCopy::HostCopy(Chunking chunking)
    : chunking_(std::move(chunking)), chunks_(chunking_.count()) {}

void HostCopy::add(uint64_t first, std::vector<UniqueFd> fds, std::vector<ChunkDigests> hold) {
  const uint64_t count = hold.size();
  const bool fits = first <= chunks_.size() && count <= chunks_.size() - first &&
                    (fds.empty() || fds.size() == count);
  if (!fits) {
    throw runtime_error(fmt::format("{} copies of {} chunks from chunk {} of \"{}\" on are not of "
                                    "its {}",
                                    fds.size(), count, first, chunking_.name, chunks_.size()),
                        kOtherBuild);
  }
  for (size_t i = 0; i < count; ++i) {
    expect_in(first + i, hold[i]);
    static_cast<void>(map(first + i, fds.empty() ? chunks_[first + i].fd : fds[i]));
  }
  for (size_t i = 0; i < count; ++i) {
    auto& chunk = chunks_[first + i];
    if (!fds.empty()) chunk.fd = std::move(fds[i]);
    chunk.holds = std::move(hold[i]);
    chunk.is_there = true;
  }
}

void HostCopy::expect_in(uint64_t chunk, const ChunkDigests& holds) const {
  const uint64_t begin = chunking_.begin(chunk);
  const uint64_t end = begin + chunking_.used_bytes(chunk);
  if (!holds) return;
  for (const auto& run : *holds) {
    if (run.offset_bytes >= begin && run.offset_bytes + run.bytes <= end) continue;
    throw runtime_error(fmt::format("what is said of {} does not lie in {}", run.name,
                                    chunking_.describe(chunk, 1)),
                        kOtherBuild);
  }
}

/// Throws where the file is not as large as it must be.
HostMapping HostCopy::map(uint64_t chunk, const UniqueFd& fd) const {
  const auto what = "the host memory of " + chunking_.describe(chunk, 1);
  if (!fd.valid()) throw runtime_error(what + " comes without a descriptor", kOtherBuild);
  return map_file(what, fd, chunking_.used_bytes(chunk));
}

void HostCopy::forget() {
  for (auto& chunk : chunks_) chunk.is_there = false;
}

bool HostCopy::bring_back(MappingDevice& device, OwnedChunks& owner, MappedChunks& mapped) const {
  std::vector<Missing> missing;
  for (uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    if (mapped.is_mapped(chunk)) continue;
    missing.push_back({chunk, map(chunk, chunks_[chunk].fd)});
  }
  const bool is_proven = check(missing);
  uint64_t taken = 0;
  try {
    for (const auto& [chunk, copy] : missing) {
      owner.take(chunk, 1);
      ++taken;
      mapped.map(owner, chunk, 1);
      device.copy_in(mapped.data() + chunking_.begin(chunk), {copy.data(), copy.bytes()});
    }
  } catch (...) {
    for (uint64_t i = 0; i < taken; ++i) {
      const uint64_t chunk = missing[i].chunk;
      if (mapped.is_mapped(chunk)) mapped.unmap(chunk, 1);
      owner.release(chunk, 1);
    }
    throw;
  }
  return is_proven;
}

bool HostCopy::check(std::span<const Missing> missing) const {
  struct Part {
    uint64_t chunk = 0;
    std::span<const std::byte> bytes;
    const DigestedRun* run = nullptr;
    uint64_t digest = 0;
  };
  std::vector<Part> parts;
  bool is_known = true;
  for (const auto& [chunk, copy] : missing) {
    const auto& holds = chunks_[chunk].holds;
    is_known = is_known && holds;
    if (!holds) continue;
    for (const auto& run : *holds) {
      const std::byte* begin = copy.data() + (run.offset_bytes - chunking_.begin(chunk));
      parts.push_back({chunk, {begin, run.bytes}, &run});
    }
  }
  ThreadPool threads(std::min(std::max(std::thread::hardware_concurrency(), 1U), kMostThreads));
  threads.for_each(parts.size(), [&](size_t i) {
    auto& [chunk, bytes, run, digest] = parts[i];
    digest = digest_elements(tensor_key(run->name), run->element_size, run->first_index, bytes);
  });
  for (const auto& [chunk, bytes, run, digest] : parts) {
    if (digest == run->digest) continue;
    throw Error(
        ExitCode::kMismatch,
        fmt::format("what of {} lies in {} is not in host memory what it was before it left: "
                    "its digest is {:#018x}, and was {:#018x}",
                    run->name, chunking_.describe(chunk, 1), digest, run->digest),
        "start from a checkpoint")
        .about_tensor(run->name);
  }
  return is_known;
}

}  // namespace awex::attach
