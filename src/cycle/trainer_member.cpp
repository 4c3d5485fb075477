#include "cycle/trainer_member.hpp"

#include <algorithm>

#include "base/checked.hpp"
#include "base/log.hpp"

namespace awex {
namespace {

/// An engine's tensors as runs of elements of its region, whose digests prove an offload.
std::vector<ProvenRun> runs_of(TrainerEngine& engine, Tag tag) {
  const PlacedMemory placed = engine.placed(tag);
  const std::byte* region = engine.region(tag)->data();
  std::vector<ProvenRun> runs;
  for (const auto& tensor : engine.tensors(tag)) {
    const auto element = narrow<uint32_t>(element_bytes(tensor.dtype));
    for (uint64_t done = 0; done < tensor.bytes();) {
      const uint64_t at = tensor.offset_bytes + done;
      const uint64_t bytes = std::min(placed.together_from(at), tensor.bytes() - done);
      const auto place = static_cast<uint64_t>(placed.at(at, bytes) - region);
      runs.push_back({tensor.name, place, bytes, element});
      done += bytes;
    }
  }
  return runs;
}

/// What others map of a trainer is its region, unless it lends its own memory.
void check_in_region(TrainerEngine& engine) {
  if (engine.region(Tag::kWeights) == nullptr) return;
  const Region& weights = *engine.region(Tag::kWeights);
  const PlacedMemory placed = engine.placed(Tag::kWeights);
  for (const auto& segment : placed.segments()) {
    const auto place = segment.address - weights.data();
    const bool is_in = place >= 0 && segment.bytes <= weights.bytes() &&
                       static_cast<uint64_t>(place) <= weights.bytes() - segment.bytes;
    if (is_in) continue;
    throw request_error(
        fmt::format("{} of the trainer's weights, from byte {} on, lie elsewhere than in \"{}\" "
                    "({}), of which alone inference can map",
                    format_bytes(segment.bytes), segment.offset_bytes, weights.name(),
                    format_bytes(weights.bytes())),
        "let the trainer keep all its weights in that memory");
  }
}

}  // namespace

TrainerMember::TrainerMember(Job& job, TrainerEngine& engine, const RankLayout& layout,
                             Kernels& kernels, CopyQueue& queue, ThreadPool& threads)
    : job_(job), engine_(engine), queue_(queue), threads_(threads) {
  check_declared(engine.tensors(Tag::kWeights), layout);
  check_in_region(engine);
  for (const Tag tag : {Tag::kWeights, Tag::kOptimizer}) {
    Region* held = region(tag);
    if (held == nullptr) continue;
    proofs_.try_emplace(tag, *held, runs_of(engine, tag), kernels);
  }
  engine.copy_by({[this](WaitMonitor& monitor) { bring_back(monitor); },
                  [this](Tag tag, WaitMonitor& monitor) {
                    proofs_.at(tag).back_up(queue_, job_.deadline(), monitor);
                  }});
}

void TrainerMember::warm_up(const std::vector<Tag>& tags) {
  std::vector<Region*> regions;
  for (const Tag tag : tags) {
    if (Region* held = region(tag)) regions.push_back(held);
  }
  if (!regions.empty()) warm_up_.emplace(regions);
}

void TrainerMember::finish_warm_up(const Region& region) {
  if (!warm_up_) return;
  const Stopwatch watch;
  const auto prepared = warm_up_->finish(region, job_.deadline(), job_);
  if (!prepared) return;
  log::detail(
      fmt::format("{} of host memory for \"{}\" were prepared in {} in the background; the "
                  "offload waited {} for it",
                  format_bytes(prepared->bytes), region.name(), format_seconds(prepared->seconds),
                  format_seconds(watch.seconds())));
}

uint64_t TrainerMember::offload(Tag tag, bool proven, uint64_t enough_bytes) {
  Region* held = region(tag);
  if (held == nullptr) {
    if (!moves_lent(tag) || is_released(tag)) return 0;
    released_.insert(tag);
    engine_.before_release(tag, job_.deadline(), job_);
    return 0;
  }
  finish_warm_up(*held);
  if (held->state() == RegionState::kResident) {
    released_.insert(tag);
    engine_.before_release(tag, job_.deadline(), job_);
  }
  if (!proven) proofs_.at(tag).leave_unproven();
  const auto copied = [&](uint64_t chunk) {
    engine_.chunk_copied(tag, chunk, digested_runs(tag, chunk), job_.deadline(), job_);
  };
  const auto change =
      proven ? proofs_.at(tag).offload(queue_, job_.deadline(), job_, enough_bytes, copied)
             : held->offload(queue_, job_.deadline(), job_, {}, enough_bytes, copied);
  return change.moved_bytes;
}

bool TrainerMember::can_offload(Tag tag, bool proven) {
  const Region* held = region(tag);
  if (held == nullptr) return true;
  return held->state() != RegionState::kResuming && (!proven || proofs_.at(tag).can_go_on());
}

ChunkDigests TrainerMember::digested_runs(Tag tag, uint64_t chunk) const {
  const auto& proof = proofs_.at(tag);
  const auto& digests = proof.recorded(chunk);
  if (!digests || proof.runs().empty()) return std::nullopt;
  std::vector<DigestedRun> digested;
  const auto parts = proof.parts(chunk);
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& run = proof.runs()[parts[i].run];
    digested.push_back({run.name, parts[i].offset_bytes, parts[i].bytes, run.element_size,
                        parts[i].first_index, (*digests)[i]});
  }
  return digested;
}

uint64_t TrainerMember::resume(Tag tag, bool proven) {
  Region* held = region(tag);
  if (held == nullptr) {
    if (is_released(tag)) tell_of_return(tag);
    return 0;
  }
  const auto change = proven ? proofs_.at(tag).resume(queue_, job_.deadline(), job_)
                             : held->resume(queue_, job_.deadline(), job_);
  if (change.changed || is_released(tag)) tell_of_return(tag);
  return change.moved_bytes;
}

void TrainerMember::tell_of_return(Tag tag) {
  engine_.after_change(tag, {Change::Kind::kResumed}, job_.deadline(), job_);
  released_.erase(tag);
}

uint64_t TrainerMember::check_backup(Tag tag) {
  return region(tag) == nullptr ? 0 : proofs_.at(tag).check_backup(threads_);
}

void TrainerMember::bring_back(WaitMonitor& monitor) {
  for (auto& [tag, proof] : proofs_) proof.bring_back(queue_, job_.deadline(), monitor);
}

uint64_t TrainerMember::catch_up(uint64_t steps) {
  while (engine_.steps() < steps) train();
  return 0;
}

uint64_t TrainerMember::train() {
  engine_.train(job_.deadline(), job_);
  return 0;
}

}  // namespace awex
