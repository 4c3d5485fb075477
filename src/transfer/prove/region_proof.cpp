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
  std::vector<std::vector<DigestView>> parts;
  for (uint64_t chunk = 0; chunk < region.range().chunks(); ++chunk) {
    parts.push_back(views_of(chunk));
  }
  digests_ = kernels.prepare_digest_parts(parts, narrow<uint32_t>(runs_.size()));
}

/// The runs' parts in a chunk; an element's place counts from its run's begin.
std::vector<DigestView> RegionProof::views_of(uint64_t chunk) const {
  const uint64_t chunk_begin = chunk * region_.range().chunk_bytes();
  const uint64_t chunk_end = chunk_begin + region_.range().chunking().used_bytes(chunk);
  std::vector<DigestView> views;
  for (size_t i = 0; i < runs_.size(); ++i) {
    const auto& run = runs_[i];
    const uint64_t begin = std::max(run.offset_bytes, chunk_begin);
    const uint64_t end = std::min(run.offset_bytes + run.bytes, chunk_end);
    if (begin >= end) continue;
    const uint64_t elements = (end - begin) / run.element_size;
    views.push_back({.data = region_.data() + begin,
                     .rows = 1,
                     .cols = elements,
                     .row_stride = elements,
                     .first_index = (begin - run.offset_bytes) / run.element_size,
                     .canonical_cols = elements,
                     .key = keys_[i],
                     .element_size = run.element_size,
                     .sum = narrow<uint32_t>(i)});
  }
  return views;
}

RegionChange RegionProof::offload(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor,
                                  uint64_t enough_bytes) {
  if (!can_go_on()) {
    throw runtime_error(fmt::format("cannot prove the rest of the offload of \"{}\" ({}): some of "
                                    "its bytes have left the device without a proof",
                                    region_.name(), format_bytes(region_.bytes())),
                        "resume it, then offload it again")
        .about_tag(tag_name(region_.tag()));
  }
  if (region_.state() == RegionState::kResident) {
    begin_record();
  } else if (region_.state() == RegionState::kOffloading) {
    record_->sums.reset();
  } else {
    const auto change = region_.offload(queue, deadline, monitor);
    if (record_ && !record_->sums) end_record(deadline, monitor);
    return change;
  }
  // What has failed may have digested a chunk that it did not give back.
  const auto leaving = [&](uint64_t chunk) {
    if (!record_->chunks[chunk]) add_to_record(chunk);
    wait(deadline, monitor);
  };
  const auto change = region_.offload(queue, deadline, monitor, leaving, enough_bytes);
  end_record(deadline, monitor);
  return change;
}

RegionChange RegionProof::resume(CopyQueue& queue, const Deadline& deadline, WaitMonitor& monitor) {
  if (!record_) {
    const auto change = region_.resume(queue, deadline, monitor);
    if (change.moved_bytes > 0) {
      log::warning(
          fmt::format("{} of \"{}\" came back unproven, because some had left without a "
                      "proof",
                      format_bytes(change.moved_bytes), region_.name()));
    }
    return change;
  }
  if (!record_->sums) end_record(deadline, monitor);
  digests_->begin();
  auto stayed = record_->chunks;  // though they were digested: their offload has failed
  const auto change = region_.resume(queue, deadline, monitor, [&](uint64_t chunk) {
    digests_->add(chunk);
    stayed[chunk] = false;
  });
  if (change.moved_bytes == 0) return change;
  for (uint64_t chunk = 0; chunk < stayed.size(); ++chunk) {
    if (stayed[chunk]) digests_->add(chunk);
  }
  const auto sums = finish(deadline, monitor);
  for (size_t i = 0; i < sums.size(); ++i) compare(i, sums[i], "after it was resumed");
  if (!has_all()) record_.reset();
  return change;
}

RegionChange RegionProof::bring_back(CopyQueue& queue, const Deadline& deadline,
                                     WaitMonitor& monitor) {
  digests_->begin();
  const auto change =
      region_.bring_back(queue, deadline, monitor, [&](uint64_t chunk) { digests_->add(chunk); });
  const auto sums = finish(deadline, monitor);
  if (!record_) {
    log::warning(
        fmt::format("{} of \"{}\" came back unproven, because their offload was not proven",
                    format_bytes(change.moved_bytes), region_.name()));
    return change;
  }
  for (size_t i = 0; i < sums.size(); ++i) compare(i, sums[i], "after it was brought back");
  return change;
}

RegionChange RegionProof::back_up(CopyQueue& queue, const Deadline& deadline,
                                  WaitMonitor& monitor) {
  record_.reset();
  const auto change = region_.back_up(queue, deadline, monitor);
  begin_record();
  for (uint64_t chunk = 0; chunk < region_.range().chunks(); ++chunk) add_to_record(chunk);
  end_record(deadline, monitor);
  return change;
}

void RegionProof::begin_record() {
  record_.reset();
  digests_->begin();
  record_ = Record{std::vector<bool>(region_.range().chunks()), std::nullopt};
}

void RegionProof::add_to_record(uint64_t chunk) {
  digests_->add(chunk);
  record_->chunks[chunk] = true;
}

void RegionProof::end_record(const Deadline& deadline, WaitMonitor& monitor) {
  const auto sums = finish(deadline, monitor);
  record_->sums.emplace(sums.begin(), sums.end());
}

void RegionProof::wait(const Deadline& deadline, WaitMonitor& monitor) {
  kernels_.wait(fmt::format("the digest of \"{}\"", region_.name()), deadline, monitor);
}

/// The digests of the chunks added.
std::span<const uint64_t> RegionProof::finish(const Deadline& deadline, WaitMonitor& monitor) {
  digests_->finish();
  wait(deadline, monitor);
  return digests_->sums();
}

uint64_t RegionProof::check_backup(ThreadPool& threads) const {
  if (!has_all()) {
    throw runtime_error(fmt::format("cannot check the host memory of \"{}\": no offload of it has "
                                    "recorded digests",
                                    region_.name()),
                        "resume it, then offload it again")
        .about_tag(tag_name(region_.tag()));
  }
  std::vector<uint64_t> digests(runs_.size());
  threads.for_each(runs_.size(), [&](size_t i) { digests[i] = digest_of_backup(i); });
  for (size_t i = 0; i < runs_.size(); ++i) compare(i, digests[i], "in its host memory");
  uint64_t bytes = 0;
  for (const auto& run : runs_) bytes += run.bytes;
  return bytes;
}

uint64_t RegionProof::digest_of_backup(size_t run) const {
  const auto& [name, offset, bytes, element_size] = runs_[run];
  return digest_in_parts(keys_[run], element_size, offset, bytes, region_.range().chunk_bytes(),
                         [this](uint64_t chunk) { return region_.backup(chunk); });
}

void RegionProof::compare(size_t run, uint64_t digest, const char* where) const {
  const uint64_t recorded = record_.value().sums.value()[run];
  if (digest == recorded) return;
  const auto& name = runs_[run].name;
  throw Error(ExitCode::kMismatch,
              fmt::format("\"{}\" is not what it was before it was offloaded: {} has the digest "
                          "{:#018x} {}, and had {:#018x}",
                          region_.name(), name, digest, where, recorded),
              "something wrote to this memory between offload and resume, or memory is faulty")
      .about_tag(tag_name(region_.tag()))
      .about_tensor(name);
}

}  // namespace awex
