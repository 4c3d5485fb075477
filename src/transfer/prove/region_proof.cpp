#include "transfer/prove/region_proof.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "model/digest.hpp"

namespace awex {

RegionProof::RegionProof(Region& region, std::vector<ProvenRun> runs, Kernels& kernels)
    : region_(region),
      runs_(std::move(runs)),
      kernels_(kernels),
      has_record_(region.range().chunks()) {
  for (const auto& run : runs_) keys_.push_back(tensor_key(run.name));
  std::vector<std::vector<DigestView>> parts;
  for (uint64_t chunk = 0; chunk < chunks(); ++chunk) {
    first_piece_.push_back(pieces_.size());
    cut(chunk);
    parts.push_back(views_of_last_chunk());
  }
  first_piece_.push_back(pieces_.size());
  record_.resize(pieces_.size());
  digests_ = kernels.prepare_digest_parts(parts, narrow<uint32_t>(pieces_.size()));
}

/// Adds a chunk's pieces.
void RegionProof::cut(uint64_t chunk) {
  const auto& chunking = region_.range().chunking();
  const uint64_t chunk_begin = chunking.begin(chunk);
  const uint64_t chunk_end = chunk_begin + chunking.used_bytes(chunk);
  for (size_t i = 0; i < runs_.size(); ++i) {
    const auto& run = runs_[i];
    const uint64_t begin = std::max(run.offset_bytes, chunk_begin);
    const uint64_t end = std::min(run.offset_bytes + run.bytes, chunk_end);
    if (begin >= end) continue;
    pieces_.push_back({i, begin, end - begin, (begin - run.offset_bytes) / run.element_size});
  }
}

/// Of the pieces that were added last.
std::vector<DigestView> RegionProof::views_of_last_chunk() const {
  std::vector<DigestView> views;
  for (size_t i = first_piece_.back(); i < pieces_.size(); ++i) {
    const auto& piece = pieces_[i];
    const uint64_t elements = piece.bytes / runs_[piece.run].element_size;
    views.push_back({.data = region_.data() + piece.offset_bytes,
                     .rows = 1,
                     .cols = elements,
                     .row_stride = elements,
                     .first_index = piece.first_index,
                     .canonical_cols = elements,
                     .key = keys_[piece.run],
                     .element_size = runs_[piece.run].element_size,
                     .sum = narrow<uint32_t>(i)});
  }
  return views;
}

std::span<const ProvenPiece> RegionProof::pieces(uint64_t chunk) const {
  const size_t first = first_piece_.at(chunk);
  return std::span(pieces_).subspan(first, first_piece_.at(chunk + 1) - first);
}

std::span<const uint64_t> RegionProof::recorded(uint64_t chunk) const {
  return std::span(record_).subspan(first_piece_.at(chunk), pieces(chunk).size());
}

void RegionProof::forget() { std::fill(has_record_.begin(), has_record_.end(), false); }

void RegionProof::leave_unproven() {
  if (region_.state() == RegionState::kResident) forget();
}

bool RegionProof::can_go_on() const {
  if (region_.state() != RegionState::kOffloading) return true;
  for (uint64_t chunk = 0; chunk < chunks(); ++chunk) {
    if (region_.is_in_host(chunk) && !has_record_[chunk]) return false;
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
  if (region_.state() == RegionState::kResident) forget();
  const auto leaving = [&](uint64_t chunk) { record(chunk, deadline, monitor); };
  return region_.offload(queue, deadline, monitor, leaving, enough_bytes, copied);
}

/// Digests a chunk as it is on the device.
void RegionProof::record(uint64_t chunk, const Deadline& deadline, WaitMonitor& monitor) {
  digests_->begin();
  digests_->add(chunk);
  finish(deadline, monitor);
  const auto first = static_cast<ptrdiff_t>(first_piece_[chunk]);
  const auto end = static_cast<ptrdiff_t>(first_piece_[chunk + 1]);
  std::copy(digests_->sums().begin() + first, digests_->sums().begin() + end,
            record_.begin() + first);
  has_record_[chunk] = true;
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
  std::vector<uint64_t> came;
  uint64_t unproven_bytes = 0;
  digests_->begin();
  const auto change = move([&](uint64_t chunk) {
    if (has_record_[chunk]) {
      digests_->add(chunk);
      came.push_back(chunk);
    } else {
      unproven_bytes += region_.range().chunking().used_bytes(chunk);
    }
  });
  if (!came.empty()) finish(deadline, monitor);
  for (const uint64_t chunk : came) {
    for (size_t i = first_piece_[chunk]; i < first_piece_[chunk + 1]; ++i) {
      compare(i, digests_->sums()[i], where);
    }
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
  for (uint64_t chunk = 0; chunk < chunks(); ++chunk) record(chunk, deadline, monitor);
  return change;
}

/// Waits for the sums of what was added.
void RegionProof::finish(const Deadline& deadline, WaitMonitor& monitor) {
  digests_->finish();
  kernels_.wait(fmt::format("the digest of \"{}\"", region_.name()), deadline, monitor);
}

uint64_t RegionProof::check_backup(ThreadPool& threads) const {
  const bool has_all =
      std::find(has_record_.begin(), has_record_.end(), false) == has_record_.end();
  if (!has_all || !region_.has_copy()) {
    throw runtime_error(fmt::format("cannot check the host memory of \"{}\": no offload of it has "
                                    "recorded digests",
                                    region_.name()),
                        "resume it, then offload it again")
        .about_tag(tag_name(region_.tag()));
  }
  std::vector<uint64_t> digests(pieces_.size());
  threads.for_each(pieces_.size(), [&](size_t i) {
    const auto& piece = pieces_[i];
    const uint64_t chunk_bytes = region_.range().chunk_bytes();
    const auto copy = region_.backup(piece.offset_bytes / chunk_bytes);
    digests[i] = digest_elements(keys_[piece.run], runs_[piece.run].element_size, piece.first_index,
                                 copy.subspan(piece.offset_bytes % chunk_bytes, piece.bytes));
  });
  uint64_t bytes = 0;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    compare(i, digests[i], "in its host memory");
    bytes += pieces_[i].bytes;
  }
  return bytes;
}

void RegionProof::compare(size_t piece, uint64_t digest, const char* where) const {
  if (digest == record_[piece]) return;
  const auto& name = runs_[pieces_[piece].run].name;
  throw Error(ExitCode::kMismatch,
              fmt::format("\"{}\" is not what it was before it was offloaded: {} has the digest "
                          "{:#018x} {}, and had {:#018x}",
                          region_.name(), name, digest, where, record_[piece]),
              "something wrote to this memory between offload and resume, or memory is faulty")
      .about_tag(tag_name(region_.tag()))
      .about_tensor(name);
}

}  // namespace awex
