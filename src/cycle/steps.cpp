#include "cycle/steps.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "layout/held_catalogue.hpp"

namespace awex {
namespace {

constexpr std::optional<Role> kTrainers = Role::kTrainer;
constexpr std::optional<Role> kInference = Role::kInference;
constexpr std::optional<Role> kEveryone = std::nullopt;

constexpr auto kEndOfDigest = "the end of the trainer's digest";

}  // namespace

Steps together(std::vector<Steps> lists) {
  Steps steps;
  for (auto& list : lists) std::move(list.begin(), list.end(), std::back_inserter(steps));
  return steps;
}

CycleSteps::CycleSteps(Job& job, const World& world, const HandOver& hand_over,
                       const JobOptions& options, const EngineFactory& engines,
                       MemoryLedger& ledger, Kernels& kernels, CopyQueue& queue,
                       RemoteCopies* remote)
    : job_(job), world_(world), hand_over_(hand_over), options_(options), ledger_(ledger) {
  Device& device = *world.device;
  if (job.peers()[static_cast<size_t>(job.rank())].role == Role::kInference) {
    inference_engine_ =
        engines.make_inference({.common = {*hand_over.model.held, hand_over.inference_here, device,
                                           ledger, kernels, queue, job, options.timeout},
                                .kv_cache_bytes = options.kv_cache_bytes});
    inference_ = std::make_unique<InferenceMember>(job, *inference_engine_, world, hand_over,
                                                   kernels, *remote);
  } else {
    threads_.emplace(world.host_threads);
    trainer_engine_ =
        engines.make_trainer({.common = {hand_over.model.catalogue(), hand_over.base_here, device,
                                         ledger, kernels, queue, job, options.timeout},
                              .source = *hand_over.model.source,
                              .weights_bytes = hand_over.trainer_here.bytes,
                              .optimizer = options.optimizer,
                              .threads = *threads_});
    trainer_ = std::make_unique<TrainerMember>(job, *trainer_engine_, hand_over.base_here, kernels,
                                               queue, *threads_);
  }
  const HeldModel& model = hand_over.model;
  const Catalogue& held = *model.held;
  const PlacedMemory weights = trainer_ ? trainer_engine_->placed(Tag::kWeights) : PlacedMemory();
  if (model_tensors(held) < held.tensors().size()) {
    scales_ = std::make_unique<ScaleSearch>(job, held, hand_over.trainer_here, weights,
                                            shared_blocks(*model.trainer_base, held), *world.device,
                                            kernels, queue);
  }
  verifier_ = std::make_unique<WeightVerifier>(job, hand_over, kernels, weights);
}

void CycleSteps::prove(Verify verify) {
  verify_ = verify;
  if (proves() && inference_) inference_->prove();
}

void CycleSteps::warm_up(const std::vector<Tag>& tags) {
  if (trainer_) trainer_->warm_up(tags);
}

void CycleSteps::stop_warm_up() {
  if (trainer_) trainer_->stop_warm_up();
}

void CycleSteps::load(bool with_mapping) {
  if (inference_) inference_->load();
  if (trainer_) trainer_->load();
  if (with_mapping) map_trainer();
}

Steps CycleSteps::scale() {
  if (!scales_) return {};
  return {{{"scale", kEveryone, Tag::kWeights}, region(Tag::kWeights), [this] {
             return scales_->run();
           }}};
}

Steps CycleSteps::offload(Tag tag) {
  if (!has(tag)) return {};
  return {{{"offload", kTrainers, tag, Link::kDeviceToHost}, region(tag), [this, tag] {
             return trainer_->offload(tag, proves());
           }}};
}

Steps CycleSteps::check_backup(Tag tag) {
  if (!has(tag) || !proves()) return {};
  return {{{"verify", kTrainers, tag}, region(tag), [this, tag] {
             return trainer_->check_backup(tag);
           }}};
}

Steps CycleSteps::restore(Tag tag) {
  if (!has(tag)) return {};
  return {{{"resume", kTrainers, tag, Link::kHostToDevice}, region(tag), [this, tag] {
             return trainer_->resume(tag, proves());
           }}};
}

Steps CycleSteps::take(Tag tag) {
  if (!has(tag)) return {};
  return {
      {{"resume", kInference, tag}, region(tag), [this, tag] { return inference_->take(tag); }}};
}

Steps CycleSteps::discard(Tag tag) {
  if (!has(tag)) return {};
  return {{{"discard", kInference, tag},
           region(tag),
           [this, tag] { return inference_->discard(tag); },
           {},
           [this, tag] {
             if (tag == Tag::kWeights) content_.discard();
           }}};
}

Steps CycleSteps::transfer() {
  return {{{"transfer", kInference, Tag::kWeights, Link::kDeviceToDevice},
           region(Tag::kWeights),
           [this] {
             if (proves()) hear_of_digest();
             written_transfer_ = transfers_;
             return inference_->transfer();
           },
           [this] {
             content_.poison();
             ++transfers_;
             wrong_.reset();  // of weights that are written anew
           }}};
}

Steps CycleSteps::digest() {
  if (!proves()) return {};
  return {{{"digest", kTrainers, Tag::kWeights}, region(Tag::kWeights), [this] {
             const uint64_t bytes = verifier_->digest();
             tell_of_digest();
             return bytes;
           }}};
}

Steps CycleSteps::compare() {
  if (verify_ != Verify::kFull) return {};
  return {{{"compare", kInference, Tag::kWeights}, region(Tag::kWeights), [this]() -> uint64_t {
             wrong_ = inference_->compare();
             return 0;
           }}};
}

Steps CycleSteps::map() {
  return {{{"map", kEveryone, Tag::kWeights}, region(Tag::kWeights), [this]() -> uint64_t {
             map_trainer();
             return 0;
           }}};
}

Steps CycleSteps::unmap() {
  return {{{"unmap", kInference, Tag::kWeights}, region(Tag::kWeights), [this]() -> uint64_t {
             inference_->unmap_trainer();
             return 0;
           }}};
}

Steps CycleSteps::verify(std::optional<DigestReport>& report) {
  return {
      {{"verify", kEveryone, Tag::kWeights}, region(Tag::kWeights), [this, &report]() -> uint64_t {
         verifier_->verify(inference_ ? inference_->sums() : verifier_->sums(), wrong_, report);
         return 0;
       }}};
}

Steps CycleSteps::commit(uint64_t version) {
  return {{{"commit", kEveryone, Tag::kWeights},
           region(Tag::kWeights),
           []() -> uint64_t { return 0; },
           {},
           [this, version] {
             content_.commit(version);
             if (trainer_) committed_steps_ = trainer_->steps();
             if (inference_) inference_->commit(version);
           }}};
}

Steps CycleSteps::train() {
  if (!options_.optimizer) return {};
  return {{{"train", kTrainers, std::nullopt}, nullptr, [this] { return trainer_->train(); }}};
}

Steps CycleSteps::catch_up(uint64_t steps) {
  return {{{"train", kTrainers, std::nullopt}, nullptr, [this, steps] {
             return trainer_->catch_up(steps);
           }}};
}

void CycleSteps::recover() {
  struct Mine {
    Content content;
    uint64_t transfers = 0;
    uint64_t written = 0;
  };
  const auto ranks = job_.all_gather_value(Mine{content_, transfers_, written_transfer_},
                                           "the content of all ranks");
  uint64_t last = 0;
  for (const auto& rank : ranks) last = std::max(last, rank.transfers);
  const bool has_written = std::any_of(ranks.begin(), ranks.end(), [last](const Mine& rank) {
    return last > 0 && rank.written == last;
  });
  std::vector<Content> contents;
  for (const auto& rank : ranks) {
    contents.push_back(rank.content);
    if (!has_written) contents.back().roll_back();
  }
  content_ = contents[static_cast<size_t>(job_.rank())];
  content_.reconcile(contents);
  transfers_ = last;
}

MemorySample CycleSteps::sample() {
  MemorySample sample;
  for (const Tag tag : {Tag::kWeights, Tag::kOptimizer, Tag::kKvCache}) {
    const Region* memory = region(tag);
    if (memory == nullptr) continue;
    sample.held.at(static_cast<size_t>(tag)) = memory->held_bytes();
    sample.host.at(static_cast<size_t>(tag)) = memory->host_bytes();
  }
  if (inference_) sample.other_held = inference_->staging_bytes();
  sample.free_bytes = world_.device->memory().free_bytes;
  sample.device_peak = ledger_.peak_bytes();
  return sample;
}

Holding CycleSteps::holding() {
  Holding holding{.role = trainer_ ? Role::kTrainer : Role::kInference};
  for (const Tag tag : {Tag::kWeights, Tag::kOptimizer, Tag::kKvCache}) {
    if (const Region* memory = region(tag)) {
      holding.regions.at(static_cast<size_t>(tag)) = memory->state();
    }
  }
  if (trainer_) {
    holding.trained = trainer_->steps();
    holding.committed = committed_steps_;
    for (const Tag tag : {Tag::kWeights, Tag::kOptimizer}) {
      holding.is_released.at(static_cast<size_t>(tag)) = trainer_->is_released(tag);
    }
  }
  holding.has_mapped = inference_ && inference_->has_mapped();
  return holding;
}

RankStatus CycleSteps::status() {
  RankStatus status = status_of_process();
  const Engine& engine = trainer_ ? *trainer_engine_ : *inference_engine_;
  status.engine = fixed_text<32>(engine.name());
  for (const Tag tag : {Tag::kWeights, Tag::kOptimizer, Tag::kKvCache}) {
    const Region* memory = region(tag);
    if (memory == nullptr) continue;
    status.memory.at(static_cast<size_t>(tag)) = RankStatus::Memory{
        memory->state(), memory->bytes(), memory->held_bytes(), memory->host_bytes()};
  }
  if (inference_) status.staging_bytes = inference_->staging_bytes();
  if (trainer_) status.steps = trainer_->steps();
  const auto device = world_.device->memory();
  status.device_free_bytes = device.free_bytes;
  status.device_total_bytes = device.total_bytes;
  return status;
}

/// Whether any rank of a role holds the tag; the same on every rank.
bool CycleSteps::has(Tag tag) const {
  switch (tag) {
    case Tag::kWeights:
      return true;
    case Tag::kOptimizer:
      return options_.optimizer;
    case Tag::kKvCache:
      return options_.kv_cache_bytes > 0;
  }
  return false;
}

/// This rank's own memory of a tag, if its role has such.
Region* CycleSteps::region(Tag tag) {
  return trainer_ ? trainer_->region(tag) : inference_->region(tag);
}

/// The transfer begins when the trainer on its GPU has digested: two processes' kernels would not
/// run side by side but take turns, at a cost.
void CycleSteps::tell_of_digest() {
  const std::byte done{};
  const Outgoing message{world_.devices.partner, {&done, 1}};
  job_.exchange({&message, 1}, {}, kEndOfDigest);
}

void CycleSteps::hear_of_digest() {
  std::byte done{};
  const Incoming message{world_.devices.partner, {&done, 1}};
  job_.exchange({}, {&message, 1}, kEndOfDigest);
}

/// Collective.
void CycleSteps::map_trainer() {
  auto* offered = trainer_ ? &region(Tag::kWeights)->range().owned() : nullptr;
  auto received = swap_handles(job_, world_.backend, offered, world_.devices.partner,
                               hand_over_.model.fingerprint);
  if (inference_) inference_->map_trainer(std::move(received));
}

}  // namespace awex
