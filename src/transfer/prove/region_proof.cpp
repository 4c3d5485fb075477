#include "transfer/prove/region_proof.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "model/digest.hpp"

namespace awex {

RegionProof::RegionProof(Region& region, std::vector<ProvenRun> runs, Kernels& kernels)
    : region_(region), runs_(std::move(runs)), kernels_(kernels) {
  for (const auto& run : runs_) keys_.push_back(tensor_key(run.name));
  for (uint64_t index = 0; index < region.range().chunks(); ++index) {
    auto& chunk = chunks_.emplace_back();
    chunk.parts = cut(index);
    chunk.digests =
        kernels.prepare_digests(views_of(chunk.parts), narrow<uint32_t>(chunk.parts.size()));
  }
}

std::vector<ProvenPart> RegionProof::cut(uint64_t chunk) const {
  const auto& chunking = region_.range().chunking();
  const uint64_t chunk_begin = chunking.begin(chunk);
  const uint64_t chunk_end = chunk_begin + chunking.used_bytes(chunk);
  std::vector<ProvenPart> parts;
  for (size_t i = 0; i < runs_.size(); ++i) {
    const auto& run = runs_[i];
    const uint64_t begin = std::max(run.offset_bytes, chunk_begin);
    const uint64_t end = std::min(run.offset_bytes + run.bytes, chunk_end);
    if (begin >= end) continue;
    parts.push_back({i, begin, end - begin, (begin - run.offset_bytes) / run.element_size});
  }
  return parts;
}

std::vector<DigestView> RegionProof::views_of(std::span<const ProvenPart> parts) const {
  std::vector<DigestView> views;
  for (const auto& part : parts) {
    const uint64_t elements = part.bytes / runs_[part.run].element_size;
    views.push_back({.data = region_.data() + part.offset_bytes,
                     .rows = 1,
                     .cols = elements,
                     .row_stride = elements,
                     .first_index = part.first_index,
                     .canonical_cols = elements,
                     .key = keys_[part.run],
                     .element_size = runs_[part.run].element_size,
                     .sum = narrow<uint32_t>(views.size())});
  }
  return views;
}

/// The device's bytes are others from here on.
void RegionProof::forget() {
  for (auto& chunk : chunks_) {
    chunk.record.reset();
    chunk.is_doubtful = false;
  }
}

void RegionProof::leave_unproven() {
  if (region_.state() == RegionState::kResident) forget();
}

bool RegionProof::can_go_on() const {
  if (region_.state() != RegionState::kOffloading) return true;
  for (uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    if (region_.is_in_host(chunk) && !chunks_[chunk].record) return false;
  }
  return true;
}

RegionChange RegionProof::offload(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                                  uint64_t enough_bytes, const ChunkCopied& copied) {
  if (!can_go_on()) {
    throw runtime_error(fmt::format("cannot prove the rest of the offload of \"{}\" ({}): some of "
                                    "its bytes have left the device without a proof",
                                    region_.name(), format_bytes(region_.bytes())),
                        "resume it, then offload it again")
        .about_tag(tag_name(region_.tag()));
  }
  if (region_.state() == RegionState::kResident) {
    resume(queue, deadline, monitor);  // What is in doubt must not be taken for what was.
    forget();
  }
  const auto leaving = [&](uint64_t chunk) { record(chunk, deadline, monitor); };
  return region_.offload(queue, deadline, monitor, leaving, enough_bytes, copied);
}

/// Digests a chunk as it is on the device.
void RegionProof::record(uint64_t chunk, const Deadline& deadline, WaitMonitor& monitor) {
  auto& of_chunk = chunks_[chunk];
  of_chunk.digests->run();
  wait(deadline, monitor);
  const auto sums = of_chunk.digests->sums();
  of_chunk.record.emplace(sums.begin(), sums.end());
}

RegionChange RegionProof::resume(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor) {
  return compare_what_comes(
      [&](const ChunkArrived& arrived) {
        return region_.resume(queue, deadline, monitor, arrived);
      },
      deadline, monitor, "after it was resumed");
}

RegionChange RegionProof::bring_back(CopyQueue& queue, const Deadline& deadline,
                                     WaitMonitor& monitor) {
  return compare_what_comes(
      [&](const ChunkArrived& arrived) {
        return region_.bring_back(queue, deadline, monitor, arrived);
      },
      deadline, monitor, "after it was brought back");
}

RegionChange RegionProof::compare_what_comes(const Move& move, const Deadline& deadline,
                                             WaitMonitor& monitor, const char* where) {
  uint64_t unproven_bytes = 0;
  std::vector<bool> is_running(chunks_.size());
  const auto change = move([&](uint64_t chunk) {
    if (!chunks_[chunk].record) {
      unproven_bytes += region_.range().chunking().used_bytes(chunk);
      return;
    }
    chunks_[chunk].digests->run();
    is_running[chunk] = chunks_[chunk].is_doubtful = true;
  });
  std::vector<uint64_t> doubtful;
  for (uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    if (!chunks_[chunk].is_doubtful) continue;
    if (!is_running[chunk]) chunks_[chunk].digests->run();
    doubtful.push_back(chunk);
  }
  if (!doubtful.empty()) wait(deadline, monitor);
  for (const uint64_t chunk : doubtful) {
    compare(chunk, chunks_[chunk].digests->sums(), where);
    chunks_[chunk].is_doubtful = false;
  }
  if (unproven_bytes > 0) {
    log::warning(
        fmt::format("{} of \"{}\" came back unproven, because they had left without a proof",
                    format_bytes(unproven_bytes), region_.name()));
  }
  return change;
}

RegionChange RegionProof::back_up(CopyQueue& queue, const Deadline& deadline,
                                  WaitMonitor& monitor) {
  forget();
  const auto change = region_.back_up(queue, deadline, monitor);
  for (uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) record(chunk, deadline, monitor);
  return change;
}

void RegionProof::wait(const Deadline& deadline, WaitMonitor& monitor) {
  kernels_.wait(fmt::format("the digest of \"{}\"", region_.name()), deadline, monitor);
}

uint64_t RegionProof::check_backup(ThreadPool& threads) const {
  const bool has_all = std::all_of(chunks_.begin(), chunks_.end(),
                                   [](const Chunk& chunk) { return chunk.record.has_value(); });
  if (!has_all || !region_.has_copy()) {
    throw runtime_error(fmt::format("cannot check the host memory of \"{}\": no offload of it has "
                                    "recorded digests",
                                    region_.name()),
                        "resume it, then offload it again")
        .about_tag(tag_name(region_.tag()));
  }
  uint64_t bytes = 0;
  for (uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    const auto& parts = chunks_[chunk].parts;
    const auto copy = region_.backup(chunk);
    std::vector<uint64_t> digests(parts.size());
    threads.for_each(parts.size(), [&](size_t i) {
      const auto& part = parts[i];
      const uint64_t begin = part.offset_bytes - region_.range().chunking().begin(chunk);
      digests[i] = digest_elements(keys_[part.run], runs_[part.run].element_size, part.first_index,
                                   copy.subspan(begin, part.bytes));
    });
    compare(chunk, digests, "in its host memory");
    for (const auto& part : parts) bytes += part.bytes;
  }
  return bytes;
}

void RegionProof::compare(uint64_t chunk, std::span<const uint64_t> digests,
                          const char* where) const {
  const auto& [parts, batch, record, is_doubtful] = chunks_[chunk];
  for (size_t i = 0; i < parts.size(); ++i) {
    if (digests[i] == (*record)[i]) continue;
    const auto& name = runs_[parts[i].run].name;
    throw Error(ExitCode::kMismatch,
                fmt::format("\"{}\" is not what it was before it was offloaded: what of {} lies in "
                            "{} has the digest {:#018x} {}, and had {:#018x}",
                            region_.name(), name, region_.range().chunking().describe(chunk, 1),
                            digests[i], where, (*record)[i]),
                "something wrote to this memory between offload and resume, or memory is faulty")
        .about_tag(tag_name(region_.tag()))
        .about_tensor(name);
  }
}

}  // namespace awex
