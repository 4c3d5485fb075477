#include "attach/library/host_copy.hpp"

#include <algorithm>
#include <iterator>
#include <optional>
#include <thread>
#include <utility>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "model/digest.hpp"

namespace awex::attach {
namespace {

constexpr unsigned kMostThreads = 16;

}  // namespace

void HostCopy::add(uint64_t first, std::vector<UniqueFd> fds, uint64_t count) {
  if (first == 0) {  // maybe again, after an answer that the rank has not waited for
    fds_.clear();
    forget();
  }
  if (first != fds_.size() || fds.size() > count - std::min<uint64_t>(count, fds_.size())) {
    throw runtime_error(fmt::format("{} copies from chunk {} on do not follow {} of {}", fds.size(),
                                    first, fds_.size(), count));
  }
  std::move(fds.begin(), fds.end(), std::back_inserter(fds_));
}

void HostCopy::complete(std::vector<DigestedRun> runs) {
  runs_ = std::move(runs);
  is_whole_ = true;
}

bool HostCopy::bring_back(MappingDevice& device, OwnedChunks& owner, MappedChunks& mapped) const {
  const Chunking& chunking = owner.chunking();
  const auto copies = map(chunking);
  check(chunking, copies);
  const uint64_t count = chunking.count();
  owner.take(0, count);
  try {
    mapped.map(owner, 0, count);
    for (uint64_t chunk = 0; chunk < count; ++chunk) {
      const auto& copy = copies[chunk];
      device.copy_in(mapped.data() + chunking.begin(chunk), {copy.data(), copy.bytes()});
    }
  } catch (...) {
    mapped.unmap();
    owner.release(0, count);
    throw;
  }
  return !runs_.empty();
}

std::vector<HostMapping> HostCopy::map(const Chunking& chunking) const {
  if (fds_.size() != chunking.count()) {
    throw runtime_error(fmt::format("the host memory of \"{}\" has {} of {} chunks", chunking.name,
                                    fds_.size(), chunking.count()));
  }
  std::vector<HostMapping> copies;
  for (uint64_t chunk = 0; chunk < chunking.count(); ++chunk) {
    copies.push_back(map_file("the host memory of " + chunking.describe(chunk, 1), fds_[chunk],
                              chunking.used_bytes(chunk)));
  }
  return copies;
}

void HostCopy::check(const Chunking& chunking, const std::vector<HostMapping>& copies) const {
  const auto part = [&](uint64_t chunk) -> std::span<const std::byte> {
    return {copies.at(chunk).data(), copies.at(chunk).bytes()};
  };
  std::vector<uint64_t> digests(runs_.size());
  ThreadPool threads(std::min(std::max(std::thread::hardware_concurrency(), 1U), kMostThreads));
  threads.for_each(runs_.size(), [&](size_t i) {
    const auto& run = runs_[i];
    if (run.offset_bytes + run.bytes > chunking.bytes) {
      throw runtime_error(fmt::format("{} reaches out of \"{}\"", run.name, chunking.name));
    }
    digests[i] = digest_in_parts(tensor_key(run.name), run.element_size, run.offset_bytes,
                                 run.bytes, chunking.chunk_bytes, part);
  });
  for (size_t i = 0; i < runs_.size(); ++i) {
    if (digests[i] == runs_[i].digest) continue;
    throw Error(ExitCode::kMismatch,
                fmt::format("{} of \"{}\" is not in host memory what it was before it left: its "
                            "digest is {:#018x}, and was {:#018x}",
                            runs_[i].name, chunking.name, digests[i], runs_[i].digest),
                "start from a checkpoint")
        .about_tensor(runs_[i].name);
  }
}

}  // namespace awex::attach
