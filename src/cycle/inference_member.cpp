#include "cycle/inference_member.hpp"

#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "transfer/prove/tensor_digests.hpp"

namespace awex {
namespace {

uint32_t role_rank_of(const Job& job, int rank) {
  return job.peers()[static_cast<size_t>(rank)].role_rank;
}

}  // namespace

InferenceMember::InferenceMember(Job& job, Engine& engine, const World& world,
                                 const HandOver& hand_over, Kernels& kernels, RemoteCopies& remote,
                                 bool trainer_attaches)
    : job_(job),
      engine_(engine),
      remote_(remote),
      hand_over_(hand_over),
      device_(*world.device),
      trainer_bytes_(hand_over.trainer_here.bytes) {
  check_declared(engine.tensors(Tag::kWeights), hand_over.inference_here);
  transfer_ = std::make_unique<WeightTransfer>(*hand_over.model.held, hand_over.plan,
                                               world.devices.placement,
                                               role_rank_of(job, job.rank()), kernels, remote);
  if (trainer_attaches) return;
  const TrainerSegment whole{0, 0, trainer_bytes_};
  place_trainer(trainer_bytes_, {&whole, 1});
}

void InferenceMember::place_trainer(uint64_t bytes, std::span<const TrainerSegment> segments) {
  trainer_bytes_ = bytes;
  trainer_weights_ = device_.reserve_mapping("trainer weights", bytes, chunk_bytes_for(bytes));
  std::vector<MemorySegment> placed;
  for (const auto& segment : segments) {
    if (segment.bytes > bytes || segment.place_bytes > bytes - segment.bytes) {
      throw runtime_error("the trainer's weights do not lie in what it offers");
    }
    placed.push_back(
        {segment.offset_bytes, trainer_weights_->data() + segment.place_bytes, segment.bytes});
  }
  trainer_placed_ = PlacedMemory("trainer weights", std::move(placed));
  prepare();
}

/// For where the engine has its weights now.
void InferenceMember::prepare() {
  moves_ = engine_.moves();
  transfer_->prepare(trainer_placed_, engine_.placed(Tag::kWeights));
  if (proves_) prepare_proof();
}

void InferenceMember::prove() {
  const bool is_prepared = trainer_weights_ || borrowed_;
  if (!std::exchange(proves_, true) && is_prepared) prepare_proof();
}

void InferenceMember::prepare_proof() {
  const auto& layout = hand_over_.inference_here;
  transfer_->prove(shard_views(*hand_over_.model.held, layout, engine_.placed(Tag::kWeights)),
                   narrow<uint32_t>(held_replicas(layout).size()));
}

void InferenceMember::load() {
  remote_.connect();
  engine_.load(job_.deadline(), job_);
}

uint64_t InferenceMember::take(Tag tag) {
  Region* held = region(tag);
  if (held == nullptr) return 0;
  if (held->take(job_.deadline(), job_).changed) untold_.insert(tag);
  if (untold_.contains(tag)) {
    engine_.after_change(tag, {Change::Kind::kTaken}, job_.deadline(), job_);
    untold_.erase(tag);
  }
  return 0;
}

uint64_t InferenceMember::discard(Tag tag) {
  Region* held = region(tag);
  if (held == nullptr) return 0;
  if (held->state() == RegionState::kResident) {
    untold_.insert(tag);
    engine_.before_release(tag, job_.deadline(), job_);
  }
  held->discard();
  untold_.erase(tag);
  return 0;
}

void InferenceMember::map_trainer(ReceivedRange received) {
  if (received.is_lent) {
    if (received.lent) {
      forget_borrowed();
      borrowed_.emplace(device_, "trainer weights", *received.lent);
      trainer_placed_ = borrowed_->placed();
      prepare();
    }
    has_mapped_ = true;
    return;
  }
  if (received.bytes != trainer_bytes_ || received.chunk_bytes != chunk_bytes_for(trainer_bytes_)) {
    throw runtime_error(
        fmt::format("the trainer offers {} bytes of weights in chunks of {}, its layout has {}",
                    received.bytes, received.chunk_bytes, trainer_bytes_),
        "this is a fault of awex-colocate: please report it");
  }
  trainer_weights_->map(std::move(received.fds));
  has_mapped_ = true;
}

void InferenceMember::unmap_trainer() {
  if (trainer_weights_) trainer_weights_->unmap();
  if (borrowed_ && !borrowed_->stays()) forget_borrowed();
  has_mapped_ = false;
}

void InferenceMember::forget_borrowed() {
  if (!borrowed_) return;
  trainer_placed_ = {};
  borrowed_.reset();
  has_mapped_ = false;
}

uint64_t InferenceMember::transfer() {
  if (engine_.moves() != moves_) prepare();
  transfer_->copy();
  return transfer_->bytes();
}

void InferenceMember::commit(uint64_t version) {
  engine_.after_change(Tag::kWeights, {Change::Kind::kCommitted, version}, job_.deadline(), job_);
}

}  // namespace awex
