#include "transfer/region_proof.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "model/digest.hpp"

namespace awex {

RegionProof::RegionProof(Region& region, std::vector<Segment> segments, Kernels& kernels)
    : region_(region), segments_(std::move(segments)), kernels_(kernels) {
  std::vector<DigestView> views;
  for (const auto& segment : segments_) {
    const uint64_t elements = segment.bytes / segment.element_size;
    keys_.push_back(tensor_key(segment.name));
    views.push_back({.data = region.data() + segment.offset_bytes,
                     .rows = 1,
                     .cols = elements,
                     .row_stride = elements,
                     .first_index = 0,
                     .canonical_cols = elements,
                     .key = keys_.back(),
                     .element_size = segment.element_size,
                     .slot = narrow<uint32_t>(views.size())});
  }
  batch_ = kernels.prepare_digests(views, narrow<uint32_t>(views.size()));
}

uint64_t RegionProof::record(const Deadline& deadline, WaitMonitor& monitor) {
  batch_->run();
  kernels_.wait(fmt::format("the digest of \"{}\"", region_.name()), deadline, monitor);
  const auto sums = batch_->sums();
  recorded_.assign(sums.begin(), sums.end());
  return total_bytes();
}

uint64_t RegionProof::check(const Deadline& deadline, WaitMonitor& monitor) const {
  batch_->run();
  kernels_.wait(fmt::format("the digest of \"{}\"", region_.name()), deadline, monitor);
  const auto sums = batch_->sums();
  for (size_t i = 0; i < segments_.size(); ++i) compare(i, sums[i], "after it was resumed");
  return total_bytes();
}

uint64_t RegionProof::check_backup(ThreadPool& threads) const {
  std::vector<uint64_t> digests(segments_.size());
  threads.for_each(segments_.size(), [&](size_t i) { digests[i] = digest_of_backup(i); });
  for (size_t i = 0; i < segments_.size(); ++i) compare(i, digests[i], "in its host memory");
  return total_bytes();
}

uint64_t RegionProof::total_bytes() const {
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
