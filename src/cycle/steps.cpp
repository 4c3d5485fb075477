#include "cycle/steps.hpp"

#include <algorithm>
#include <array>
#include <iterator>
#include <span>
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

CycleSteps::CycleSteps(Job& job, const World& world, const Roster& roster,
                       const HandOver& hand_over, const JobOptions& options,
                       const EngineFactory& engines, MemoryLedger& ledger, Kernels& kernels,
                       CopyQueue& queue, RemoteCopies* remote)
    : job_(job),
      world_(world),
      roster_(roster),
      hand_over_(hand_over),
      options_(options),
      ledger_(ledger) {
  Device& device = *world.device;
  const EngineNeeds needs = roster.of(job.rank());
  const uint32_t role_rank = job.peers()[static_cast<size_t>(job.rank())].role_rank;
  if (job.peers()[static_cast<size_t>(job.rank())].role == Role::kInference) {
    inference_engine_ = engines.make_inference(
        {.common = {*hand_over.model.held, hand_over.inference_here, device, ledger, kernels, queue,
                    job, options.timeout, needs, role_rank, hand_over.model.inference->describe()},
         .kv_cache_bytes = options.kv_cache_bytes});
    inference_ = std::make_unique<InferenceMember>(job, *inference_engine_, world, hand_over,
                                                   kernels, *remote, roster.trainers);
  } else {
    threads_.emplace(world.host_threads);
    trainer_engine_ =
        engines.make_trainer({.common = {hand_over.model.catalogue(), hand_over.base_here, device,
                                         ledger, kernels, queue, job, options.timeout, needs,
                                         role_rank, hand_over.model.trainer->describe()},
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
  committed_changes_ = trainer_ ? trainer_engine_->changes() : 0;
  verified_moves_ = trainer_ ? trainer_engine_->moves() : 0;
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
  const int trainer = trainer_ ? job_.rank() : world_.devices.partner;
  if (roster_.trainers && !lends(trainer)) swap_segments();
  if (roster_.any()) admit();
  if (with_mapping) map_trainer();
}

Engine& CycleSteps::engine() { return trainer_engine_ ? *trainer_engine_ : *inference_engine_; }

/// Engines that attach have sealed, and wait to go on: what they have loaded does not change
/// before.
void CycleSteps::admit() {
  job_.set_phase("admission");
  std::optional<Error> refusal;
  if (roster_.admits_by_digest) {
    try {
      compare_loaded();
    } catch (const Error& error) {
      if (!job_.failure_is_agreed()) throw;
      refusal = error;
    }
    if (!refusal) discard_loaded();
  }
  engine().loaded(refusal, job_.deadline(), job_);
  if (refusal) job_.fail_together(*refusal);
}

void CycleSteps::compare_loaded() {
  if (scales_) scales_->run();
  std::vector<uint64_t> sums;
  if (trainer_) {
    digest_trainer();
    sums.assign(verifier_->sums().begin(), verifier_->sums().end());
  } else {
    sums = verifier_->digest_once(inference_engine_->placed(Tag::kWeights));
  }
  job_.agree(nullptr);
  std::optional<DigestReport> report;
  verifier_->verify(sums, std::nullopt, report, WeightVerifier::Origin::kLoaded);
}

/// Until the first update.
void CycleSteps::discard_loaded() {
  if (inference_) inference_->discard(Tag::kWeights);
}

/// Where a trainer's weights lie in its memory, its partner learns from it.
void CycleSteps::swap_segments() {
  constexpr auto kWhat = "where the trainers' weights lie";
  struct Head {
    uint64_t segments = 0;
    uint64_t bytes = 0;  ///< Of the memory that they lie in.
  };
  const int partner = world_.devices.partner;
  if (trainer_) {
    const auto memory = trainer_engine_->placed(Tag::kWeights);
    const Region& weights = *region(Tag::kWeights);
    std::vector<TrainerSegment> segments;
    for (const auto& segment : memory.segments()) {
      segments.push_back({segment.offset_bytes,
                          static_cast<uint64_t>(segment.address - weights.data()), segment.bytes});
    }
    const Head head{segments.size(), weights.bytes()};
    const std::array sends{Outgoing{partner, std::as_bytes(std::span(&head, 1))},
                           Outgoing{partner, std::as_bytes(std::span(segments))}};
    return job_.exchange(sends, {}, kWhat);
  }
  Head head;
  const Incoming first{partner, std::as_writable_bytes(std::span(&head, 1))};
  job_.exchange({}, {&first, 1}, kWhat);
  std::vector<TrainerSegment> segments(head.segments);
  const Incoming rest{partner, std::as_writable_bytes(std::span(segments))};
  job_.exchange({}, {&rest, 1}, kWhat);
  inference_->place_trainer(head.bytes, segments);
}

Steps CycleSteps::ready(std::optional<TakenBack> take_back) {
  if (!roster_.any()) return {};
  return {{.phase = {"ready", kEveryone, std::nullopt},
           .work = [this, take_back]() -> uint64_t {
             engine().await_ready(take_back, job_.deadline(), job_);
             return 0;
           },
           .is_of_engines = true}};
}

void CycleSteps::command_over(const CommandOutcome& end) { engine().command_over(end); }

void CycleSteps::hear_of_trainers(std::span<const RankStatus> ranks) {
  if (!trainer_engine_) {
    const auto& partner = ranks[static_cast<size_t>(world_.devices.partner)].attendance;
    if (partner && !partner->is_here) inference_->forget_borrowed();
    return;
  }
  bool must_return = false;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    if (job_.peers()[rank].role != Role::kTrainer) continue;
    const bool is_torn = ranks[rank].attendance && ranks[rank].attendance->is_torn;
    const bool is_equal = ranks[rank].steps == trainer_->steps();
    must_return = must_return || is_torn || !is_equal;
  }
  trainer_engine_->hear_of_others(must_return);
}

void CycleSteps::attend() { engine().attend(job_); }

Steps CycleSteps::scale() {
  if (!scales_) return {};
  return {{{"scale", kEveryone, Tag::kWeights}, region(Tag::kWeights), [this] {
             return scales_->run();
           }}};
}

Steps CycleSteps::offload(Tag tag) {
  return offload(tag, std::vector(static_cast<size_t>(job_.size()), kEverything));
}

Steps CycleSteps::offload(Tag tag, const std::vector<uint64_t>& bytes) {
  const bool is_any =
      std::any_of(bytes.begin(), bytes.end(), [](uint64_t give) { return give > 0; });
  if (!has(tag) || !is_any) return {};
  const uint64_t mine = bytes[static_cast<size_t>(job_.rank())];
  return {{.phase = {"offload", kTrainers, tag, Link::kDeviceToHost},
           .region = region(tag),
           .work = [this, tag, mine]() -> uint64_t {
             return mine > 0 ? trainer_->offload(tag, proves(), mine) : 0;
           },
           .is_of_engines = engines_move(tag)}};
}

Steps CycleSteps::check_backup(Tag tag) {
  if (!has(tag) || !proves()) return {};
  return {{{"verify", kTrainers, tag}, region(tag), [this, tag] {
             return trainer_->check_backup(tag);
           }}};
}

Steps CycleSteps::restore(Tag tag) {
  if (!has(tag)) return {};
  return {{.phase = {"resume", kTrainers, tag, Link::kHostToDevice},
           .region = region(tag),
           .work = [this, tag] { return trainer_->resume(tag, proves()); },
           .is_of_engines = engines_move(tag)}};
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

Steps CycleSteps::serve(const CommandOutcome& end) {
  if (!roster_.inference) return {};
  return {{.phase = {"serve", kInference, std::nullopt},
           .work = [this, end]() -> uint64_t {
             meet_inference();
             inference_engine_->go_on(end);
             return 0;
           },
           .is_of_engines = true}};
}

void CycleSteps::let_trainer_go_on(const CommandOutcome& end) {
  if (trainer_engine_) trainer_engine_->go_on(end);
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
             const uint64_t bytes = digest_trainer();
             tell_of_digest();
             return bytes;
           }}};
}

/// Where the trainer's weights are now.
uint64_t CycleSteps::digest_trainer() {
  if (const uint64_t moves = trainer_engine_->moves(); moves != verified_moves_) {
    verifier_->place(trainer_engine_->placed(Tag::kWeights));
    verified_moves_ = moves;
  }
  return verifier_->digest();
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
             if (trainer_) {
               committed_steps_ = trainer_->steps();
               committed_changes_ = trainer_engine_->changes();
             }
             if (inference_) inference_->commit(version);
           }}};
}

Steps CycleSteps::train() {
  if (!options_.optimizer || roster_.trainers) return {};
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
      holding.held_bytes.at(static_cast<size_t>(tag)) = memory->held_bytes();
      holding.lacking_bytes.at(static_cast<size_t>(tag)) = memory->lacking_bytes();
    }
  }
  if (trainer_) {
    holding.trained = trainer_->steps();
    holding.committed = committed_steps_;
    holding.is_changed = trainer_engine_->changes() != committed_changes_;
    holding.lends = lends(job_.rank());
    for (const Tag tag : {Tag::kWeights, Tag::kOptimizer}) {
      holding.is_released.at(static_cast<size_t>(tag)) = trainer_->is_released(tag);
      holding.must_return.at(static_cast<size_t>(tag)) = !trainer_->can_offload(tag, proves());
    }
  }
  holding.has_mapped = inference_ && inference_->has_mapped();
  holding.room_bytes = ledger_.room_bytes();
  const DeviceMemory memory = world_.device->memory();
  holding.free_bytes = memory.free_bytes;
  holding.total_bytes = memory.total_bytes;
  return holding;
}

RankStatus CycleSteps::status() {
  RankStatus status = status_of_process();
  status.engine = fixed_text<32>(engine().name());
  if (roster_.attaches(trainer_ ? Role::kTrainer : Role::kInference)) {
    status.attendance = engine().attendance();
  }
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

bool CycleSteps::any_asks(uint64_t EngineNeeds::*what) const {
  return std::any_of(roster_.needs.begin(), roster_.needs.end(),
                     [what](const EngineNeeds& needs) { return needs.*what > 0; });
}

/// Whether any rank of a role holds the tag; the same on every rank.
bool CycleSteps::has(Tag tag) const {
  switch (tag) {
    case Tag::kWeights:
      return true;
    case Tag::kOptimizer:
      return roster_.trainers ? any_asks(&EngineNeeds::optimizer) : options_.optimizer;
    case Tag::kKvCache:
      return roster_.inference ? any_asks(&EngineNeeds::kv_cache) : options_.kv_cache_bytes > 0;
  }
  return false;
}

/// Whether any trainer's engine moves its memory of a tag itself.
bool CycleSteps::engines_move(Tag tag) const {
  return tag == Tag::kWeights &&
         std::any_of(roster_.needs.begin(), roster_.needs.end(),
                     [](const EngineNeeds& needs) { return needs.moves_weights; });
}

/// This rank's own memory of a tag, if its role has such.
Region* CycleSteps::region(Tag tag) {
  return trainer_ ? trainer_->region(tag) : inference_->region(tag);
}

/// Returns when all inference ranks have come here: an engine of several must not begin with one
/// that cannot.
void CycleSteps::meet_inference() {
  constexpr auto kWhat = "inference's return to service";
  std::vector<int> ranks = ranks_of(job_.peers(), Role::kInference);
  const int first = ranks.front();
  if (job_.rank() != first) ranks = {first};
  std::erase(ranks, job_.rank());
  const std::byte here{};
  std::vector<std::byte> heard(ranks.size());
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (size_t i = 0; i < ranks.size(); ++i) {
    sends.push_back({ranks[i], {&here, 1}});
    receives.push_back({ranks[i], {&heard[i], 1}});
  }
  if (job_.rank() != first) job_.exchange(sends, {}, kWhat);
  job_.exchange({}, receives, kWhat);
  if (job_.rank() == first) job_.exchange(sends, {}, kWhat);
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
  HandlesHere here;
  if (trainer_ && region(Tag::kWeights) != nullptr) {
    here.owned = &region(Tag::kWeights)->range().owned();
  } else if (trainer_) {
    here.lent = trainer_engine_->lent();
  } else {
    here.borrowed = inference_->borrowed();
  }
  auto received = swap_handles(job_, world_.backend, here, world_.devices.partner,
                               hand_over_.model.fingerprint);
  if (inference_) inference_->map_trainer(std::move(received));
}

}  // namespace awex
