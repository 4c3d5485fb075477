#include "cycle/inference_member.hpp"

#include <utility>

#include "base/checked.hpp"
#include "transfer/prove/tensor_digests.hpp"

namespace awex {
namespace {

uint32_t role_rank_of(const Job& job, int rank) {
  return job.peers()[static_cast<size_t>(rank)].role_rank;
}

}  // namespace

InferenceMember::InferenceMember(Job& job, const World& world, const HandOver& hand_over,
                                 uint64_t kv_cache_bytes, bool proves, MemoryLedger& ledger,
                                 Kernels& kernels, CopyQueue& queue, RemoteCopies& remote)
    : job_(job),
      queue_(queue),
      remote_(remote),
      trainer_bytes_(hand_over.trainer_here.bytes),
      inference_(*hand_over.model.held, hand_over.inference_here, kv_cache_bytes, *world.device,
                 ledger) {
  trainer_weights_ = world.device->reserve_import("trainer weights", trainer_bytes_,
                                                  chunk_bytes_for(trainer_bytes_));
  transfer_ = std::make_unique<WeightTransfer>(
      *hand_over.model.held, hand_over.plan, world.devices.placement, role_rank_of(job, job.rank()),
      trainer_weights_->data(), inference_.weights().data(), kernels, remote);
  if (proves) {
    transfer_->prove(
        shard_views(*hand_over.model.held, hand_over.inference_here, inference_.weights().data()),
        narrow<uint32_t>(held_copies(hand_over.inference_here).size()));
  }
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
    region(tag)->take(job_.deadline(), job_);
  }
  return 0;
}

uint64_t InferenceMember::discard(Tag tag) {
  region(tag)->discard();
  return 0;
}

void InferenceMember::connect() { remote_.connect(); }

void InferenceMember::map_trainer(ReceivedRange received) {
  if (received.bytes != trainer_bytes_ || received.chunk_bytes != chunk_bytes_for(trainer_bytes_)) {
    throw runtime_error(
        fmt::format("the trainer offers {} bytes of weights in chunks of {}, its layout has {}",
                    received.bytes, received.chunk_bytes, trainer_bytes_),
        "this is a fault of awex-colocate: please report it");
  }
  trainer_weights_->map(std::move(received.fds));
}

void InferenceMember::unmap_trainer() { trainer_weights_->unmap(); }

uint64_t InferenceMember::transfer() {
  transfer_->copy();
  return transfer_->bytes();
}

std::optional<WrongElement> InferenceMember::compare() { return transfer_->compare(); }

}  // namespace awex
