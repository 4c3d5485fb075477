#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cycle/content.hpp"
#include "cycle/hand_over.hpp"
#include "cycle/inference_member.hpp"
#include "cycle/options.hpp"
#include "cycle/phases.hpp"
#include "cycle/rank_status.hpp"
#include "cycle/readiness.hpp"
#include "cycle/roster.hpp"
#include "cycle/trainer_member.hpp"
#include "cycle/weight_verifier.hpp"
#include "cycle/world.hpp"
#include "engine/engine.hpp"
#include "transfer/move/scale_search.hpp"

namespace awex {

using Steps = std::vector<Step>;

/// One list of several: each rank goes through its own steps in this order, while ranks of the
/// other role go through theirs.
[[nodiscard]] Steps together(std::vector<Steps> lists);

/// The phases that a run consists of, and what this rank does in each. A phase about a tag that no
/// rank holds, or that only proves what --verify off leaves unproven, is an empty list. All ranks
/// get equal lists, but for the work.
class CycleSteps {
 public:
  /// Makes this rank's engine, which reserves addresses; one that attaches is let in. All
  /// references must outlive the steps. `remote` is null on trainer ranks.
  CycleSteps(Job& job, const World& world, const Roster& roster, const HandOver& hand_over,
             const JobOptions& options, const EngineFactory& engines, MemoryLedger& ledger,
             Kernels& kernels, CopyQueue& queue, RemoteCopies* remote);

  /// How the steps made from now on prove what they do.
  void prove(Verify verify);

  /// Trainers begin to prepare the host memory of these tags in the background, in their order;
  /// the first offload of each waits for it.
  void warm_up(const std::vector<Tag>& tags);
  /// Gives it up, without waiting.
  void stop_warm_up();
  /// Connects the inference ranks, loads the engines, admits those that attach, and maps what the
  /// trainers hold. Collective.
  void load(bool with_mapping);

  /// Engines that attach consent to the command; nothing where none attaches.
  [[nodiscard]] Steps ready(std::optional<TakenBack> take_back);
  /// The trainer finds the scales of what is quantised on its way.
  [[nodiscard]] Steps scale();
  /// The trainer's memory of a tag goes to host memory.
  [[nodiscard]] Steps offload(Tag tag);
  /// So much of it goes, in bytes of device memory by rank; nothing where that is nothing. The next
  /// offload goes on with the rest.
  [[nodiscard]] Steps offload(Tag tag, const std::vector<uint64_t>& bytes);
  /// The trainer's bytes in host memory are what they were on the device.
  [[nodiscard]] Steps check_backup(Tag tag);
  /// The trainer's memory of a tag comes back, and is what it was.
  [[nodiscard]] Steps restore(Tag tag);
  /// Inference takes, and gives back, its memory of a tag.
  [[nodiscard]] Steps take(Tag tag);
  [[nodiscard]] Steps discard(Tag tag);
  /// All of inference has its memory and serves the version: engines that attach go on, whatever
  /// the command does beside and after this; nothing where none attaches. `end` is what they are
  /// told.
  [[nodiscard]] Steps serve(const CommandOutcome& end);
  /// The same for this rank's trainer, once all ranks agree that all trainers have their memory.
  void let_trainer_go_on(const CommandOutcome& end);
  /// Trainers digest their weights, for `verify`.
  [[nodiscard]] Steps digest();
  /// Inference brings the trainers' weights here, and digests what it holds then; once the trainers
  /// have digested, if they do.
  [[nodiscard]] Steps transfer();
  /// With --verify full, inference brings them once more and compares.
  [[nodiscard]] Steps compare();
  /// Inference maps the trainers' weights, which must be resident. What is mapped does not become
  /// free when the trainer gives it back.
  [[nodiscard]] Steps map();
  [[nodiscard]] Steps unmap();
  /// All ranks compare what they digested; fills `report`.
  [[nodiscard]] Steps verify(std::optional<DigestReport>& report);
  /// All ranks agree that the version is right.
  [[nodiscard]] Steps commit(uint64_t version);
  [[nodiscard]] Steps train();
  /// Trainers that have taken fewer training steps take them; after a failure.
  [[nodiscard]] Steps catch_up(uint64_t steps);

  /// After a failure, when the device is idle: all ranks come to one content, which is the one
  /// before the failed transfer where no rank has written a byte of it. Collective.
  void recover();

  /// This rank's engine learns that a command is over.
  void command_over(const CommandOutcome& end);
  /// At rest: lets an engine come in place of one that was lost.
  void attend();
  /// Where trainers have not come equally far, or one was lost while it wrote, those that are lost
  /// return to what was handed over last. `ranks` by rank.
  void hear_of_trainers(std::span<const RankStatus> ranks);
  /// What this rank's engine waits for.
  [[nodiscard]] EngineWish wish() { return engine().wish(); }

  /// This rank's memory at a quiet moment.
  [[nodiscard]] MemorySample sample();
  [[nodiscard]] Holding holding();
  [[nodiscard]] RankStatus status();
  /// Of inference's weights, over all ranks.
  [[nodiscard]] const Content& content() const { return content_; }

 private:
  [[nodiscard]] bool has(Tag tag) const;
  [[nodiscard]] bool any_asks(uint64_t EngineNeeds::*what) const;
  [[nodiscard]] bool proves() const { return verify_ != Verify::kOff; }
  [[nodiscard]] Region* region(Tag tag);
  [[nodiscard]] Engine& engine();
  [[nodiscard]] bool engines_move(Tag tag) const;
  [[nodiscard]] bool lends(int rank) const { return roster_.of(rank).lends_weights; }
  uint64_t digest_trainer();
  void admit();
  void compare_loaded();
  void discard_loaded();
  void swap_segments();
  void meet_inference();
  void tell_of_digest();
  void hear_of_digest();
  void map_trainer();

  Job& job_;
  const World& world_;
  const Roster& roster_;
  const HandOver& hand_over_;
  const JobOptions& options_;
  Verify verify_ = Verify::kOff;
  MemoryLedger& ledger_;
  std::optional<ThreadPool> threads_;              ///< On a trainer rank.
  std::unique_ptr<TrainerEngine> trainer_engine_;  ///< On a trainer rank.
  std::unique_ptr<Engine> inference_engine_;       ///< On an inference rank.
  std::unique_ptr<TrainerMember> trainer_;         ///< On a trainer rank.
  std::unique_ptr<InferenceMember> inference_;     ///< On an inference rank.
  std::unique_ptr<ScaleSearch> scales_;            ///< Where anything is quantised.
  std::unique_ptr<WeightVerifier> verifier_;
  Content content_;
  uint64_t transfers_ = 0;             ///< That have begun,
  uint64_t written_transfer_ = 0;      ///< and the last of them that has written here.
  uint64_t verified_moves_ = 0;        ///< Engine::moves that a trainer's verifier looks at.
  uint64_t committed_steps_ = 0;       ///< A trainer's, when its weights were committed last,
  uint64_t committed_changes_ = 0;     ///< and how often they had become others then.
  std::optional<WrongElement> wrong_;  ///< What the last comparison of bytes found here.
};

}  // namespace awex
