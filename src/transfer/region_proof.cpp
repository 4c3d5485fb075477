#include "transfer/region_proof.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "model/digest.hpp"

namespace awex {

RegionProof::RegionProof(Region& region, std::vector<Segment> segments, Kernels& kernels)
    : region_(region), segments_(std::move(segments)), kernels_(kernels) {
  for (const auto& segment : segments_) keys_.push_back(tensor_key(segment.name));
  all_ = prepare(0, region.bytes());
  for (uint64_t chunk = 0; chunk < region.range().chunks(); ++chunk) {
    const uint64_t begin = chunk * region.range().chunk_bytes();
    chunks_.push_back(prepare(begin, begin + region.range().chunk_used_bytes(chunk)));
  }
}

/// Views of the segments' parts in a range; an element's place counts from its segment's begin.
RegionProof::RangeDigests RegionProof::prepare(uint64_t range_begin, uint64_t range_end) const {
  RangeDigests digests;
  std::vector<DigestView> views;
  for (size_t i = 0; i < segments_.size(); ++i) {
    const auto& segment = segments_[i];
    const uint64_t begin = std::max(segment.offset_bytes, range_begin);
    const uint64_t end = std::min(segment.offset_bytes + segment.bytes, range_end);
    if (begin >= end) continue;
    const uint64_t elements = (end - begin) / segment.element_size;
    views.push_back({.data = region_.data() + begin,
                     .rows = 1,
                     .cols = elements,
                     .row_stride = elements,
                     .first_index = (begin - segment.offset_bytes) / segment.element_size,
                     .canonical_cols = elements,
                     .key = keys_[i],
                     .element_size = segment.element_size,
                     .slot = narrow<uint32_t>(views.size())});
    digests.segments.push_back(i);
  }
  digests.batch = kernels_.prepare_digests(views, narrow<uint32_t>(views.size()));
  return digests;
}

void RegionProof::begin_record() const { all_.batch->run(); }

void RegionProof::finish_record(const Deadline& deadline, WaitMonitor& monitor) {
  wait(deadline, monitor);
  recorded_.assign(segments_.size(), 0);
  add(all_, recorded_);
}

void RegionProof::begin_check(uint64_t chunk) { chunks_.at(chunk).batch->run(); }

void RegionProof::finish_check(const Deadline& deadline, WaitMonitor& monitor) const {
  wait(deadline, monitor);
  std::vector<uint64_t> digests(segments_.size(), 0);
  for (const auto& chunk : chunks_) add(chunk, digests);
  for (size_t i = 0; i < segments_.size(); ++i) compare(i, digests[i], "after it was resumed");
}

void RegionProof::wait(const Deadline& deadline, WaitMonitor& monitor) const {
  kernels_.wait(fmt::format("the digest of \"{}\"", region_.name()), deadline, monitor);
}

void RegionProof::add(const RangeDigests& range, std::vector<uint64_t>& digests) {
  const auto sums = range.batch->sums();
  for (size_t i = 0; i < sums.size(); ++i) digests[range.segments[i]] += sums[i];
}

uint64_t RegionProof::check_backup(ThreadPool& threads) const {
  std::vector<uint64_t> digests(segments_.size());
  threads.for_each(segments_.size(), [&](size_t i) { digests[i] = digest_of_backup(i); });
  for (size_t i = 0; i < segments_.size(); ++i) compare(i, digests[i], "in its host memory");
  uint64_t bytes = 0;
  for (const auto& segment : segments_) bytes += segment.bytes;
  return bytes;
}

uint64_t RegionProof::digest_of_backup(size_t segment) const {
  const auto& [name, offset, bytes, element_size] = segments_[segment];
  const uint64_t chunk_bytes = region_.range().chunk_bytes();
  uint64_t digest = 0;
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t at = offset + done;
    const auto chunk = region_.backup(at / chunk_bytes).subspan(at % chunk_bytes);
    const auto part = chunk.first(std::min<uint64_t>(chunk.size(), bytes - done));
    digest += digest_elements(keys_[segment], element_size, done / element_size, part);
    done += part.size();
  }
  return digest;
}

void RegionProof::compare(size_t segment, uint64_t digest, const char* where) const {
  if (digest == recorded_[segment]) return;
  const auto& name = segments_[segment].name;
  throw Error(ExitCode::kMismatch,
              fmt::format("\"{}\" is not what it was before it was offloaded: {} has the digest "
                          "{:#018x} {}, and had {:#018x}",
                          region_.name(), name, digest, where, recorded_[segment]),
              "something wrote to this memory between offload and resume, or memory is faulty")
      .about_tag(tag_name(region_.tag()))
      .about_tensor(name);
}

}  // namespace awex
