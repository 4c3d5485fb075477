#include "cycle/inference_member.hpp"

#include <utility>

namespace awex {
namespace {

uint32_t role_rank_of(const Job& job, int rank) {
  return job.peers()[static_cast<size_t>(rank)].role_rank;
}

}  // namespace

InferenceMember::InferenceMember(Job& job, const Setup& setup, uint64_t kv_cache_bytes,
                                 Kernels& kernels, CopyQueue& queue, Exchange& exchange)
    : job_(job),
      queue_(queue),
      inference_(setup.catalogue(), setup.inference_ranks[role_rank_of(job, job.rank())],
                 kv_cache_bytes, *setup.device) {
  const auto& trainer = setup.trainer_ranks[role_rank_of(job, setup.devices.partner)];
  trainer_weights_ = setup.device->reserve_import("trainer weights", trainer.bytes,
                                                  chunk_bytes_for(trainer.bytes));
  transfer_ = std::make_unique<WeightTransfer>(
      setup.catalogue(), setup.plan, setup.devices.placement, role_rank_of(job, job.rank()),
      trainer_weights_->data(), inference_.weights().data(), *setup.device, kernels, exchange);
  transfer_->connect(job);
}

Region* InferenceMember::region(Tag tag) {
  switch (tag) {
    case Tag::kWeights:
      return &inference_.weights();
    case Tag::kKvCache:
      return inference_.kv_cache();
    case Tag::kOptimizer:
      return nullptr;
  }
  return nullptr;
}

uint64_t InferenceMember::take(Tag tag) {
  if (tag == Tag::kWeights) {
    inference_.take_weights(queue_, job_.deadline(), job_);
  } else {
    region(tag)->take();
  }
  return 0;
}

uint64_t InferenceMember::discard(Tag tag) {
  region(tag)->discard();
  return 0;
}

void InferenceMember::map_trainer(ReceivedRange received) {
  trainer_weights_->map(std::move(received.fds));
}

void InferenceMember::unmap_trainer() { trainer_weights_->unmap(); }

uint64_t InferenceMember::transfer() {
  transfer_->copy(job_);
  return transfer_->bytes();
}

std::optional<WrongElement> InferenceMember::compare() { return transfer_->compare(job_); }

}  // namespace awex
