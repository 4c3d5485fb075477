#include "cycle/trainer_member.hpp"

#include "base/checked.hpp"
#include "base/log.hpp"

namespace awex {
namespace {

/// An engine's tensors as runs of elements, whose digests prove an offload.
std::vector<ProvenRun> runs_of(const std::vector<Parameter>& tensors) {
  std::vector<ProvenRun> runs;
  for (const auto& tensor : tensors) {
    runs.push_back({tensor.name, tensor.offset_bytes, tensor.bytes(),
                    narrow<uint32_t>(element_bytes(tensor.dtype))});
  }
  return runs;
}

/// What others map of a trainer is its region.
void check_in_region(TrainerEngine& engine) {
  const Region& weights = *engine.region(Tag::kWeights);
  const PlacedMemory placed = engine.placed(Tag::kWeights);
  const auto segments = placed.segments();
  const MemorySegment whole{0, weights.data(), weights.bytes()};
  if (segments.size() == 1 && segments.front() == whole) return;
  throw request_error(
      fmt::format("the trainer's weights lie in {} segments, of which inference can map \"{}\" "
                  "({}) alone",
                  segments.size(), weights.name(), format_bytes(weights.bytes())),
      "let the trainer keep all its weights in that memory");
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
    proofs_.try_emplace(tag, *held, runs_of(engine.tensors(tag)), kernels);
  }
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

uint64_t TrainerMember::offload(Tag tag, bool proven) {
  Region* held = region(tag);
  if (held == nullptr) return 0;
  finish_warm_up(*held);
  if (held->state() == RegionState::kResident) {
    released_.insert(tag);
    engine_.before_release(tag, job_.deadline(), job_);
  }
  const auto change = proven ? proofs_.at(tag).offload(queue_, job_.deadline(), job_)
                             : held->offload(queue_, job_.deadline(), job_);
  return change.moved_bytes;
}

uint64_t TrainerMember::resume(Tag tag, bool proven) {
  Region* held = region(tag);
  if (held == nullptr) return 0;
  const auto change = proven ? proofs_.at(tag).resume(queue_, job_.deadline(), job_)
                             : held->resume(queue_, job_.deadline(), job_);
  if (change.changed || is_released(tag)) {
    engine_.after_change(tag, {Change::Kind::kResumed}, job_.deadline(), job_);
    released_.erase(tag);
  }
  return change.moved_bytes;
}

uint64_t TrainerMember::check_backup(Tag tag) {
  return region(tag) == nullptr ? 0 : proofs_.at(tag).check_backup(threads_);
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
