#include "cycle/trainer_member.hpp"

#include "base/log.hpp"

namespace awex {

TrainerMember::TrainerMember(Job& job, const World& world, const HandOver& hand_over,
                             bool with_optimizer, MemoryLedger& ledger, Kernels& kernels,
                             CopyQueue& queue)
    : job_(job),
      device_(*world.device),
      source_(*hand_over.model.source),
      queue_(queue),
      threads_(world.host_threads),
      trainer_(hand_over.model.catalogue(), hand_over.base_here, hand_over.trainer_here.bytes,
               with_optimizer, *world.device, ledger, kernels, threads_) {
  proofs_.try_emplace(Tag::kWeights, trainer_.weights(), trainer_.weight_segments(), kernels);
  if (trainer_.optimizer() == nullptr) return;
  proofs_.try_emplace(Tag::kOptimizer, *trainer_.optimizer(), trainer_.optimizer_segments(),
                      kernels);
}

Region* TrainerMember::region(Tag tag) {
  switch (tag) {
    case Tag::kWeights:
      return &trainer_.weights();
    case Tag::kOptimizer:
      return trainer_.optimizer();
    case Tag::kKvCache:
      return nullptr;
  }
  return nullptr;
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

void TrainerMember::load() { trainer_.load(source_, device_, queue_, job_.deadline(), job_); }

uint64_t TrainerMember::offload(Tag tag, bool proven) {
  finish_warm_up(*region(tag));
  const auto change = proven ? proof(tag).offload(queue_, job_.deadline(), job_)
                             : region(tag)->offload(queue_, job_.deadline(), job_);
  return change.moved_bytes;
}

uint64_t TrainerMember::resume(Tag tag, bool proven) {
  const auto change = proven ? proof(tag).resume(queue_, job_.deadline(), job_)
                             : region(tag)->resume(queue_, job_.deadline(), job_);
  return change.moved_bytes;
}

uint64_t TrainerMember::check_backup(Tag tag) { return proof(tag).check_backup(threads_); }

uint64_t TrainerMember::train() {
  trainer_.train(job_.deadline(), job_);
  return 0;
}

RegionProof& TrainerMember::proof(Tag tag) { return proofs_.at(tag); }

}  // namespace awex
