#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/checked.hpp"
#include "base/fixed_text.hpp"
#include "base/role.hpp"
#include "base/thread_pool.hpp"
#include "base/wait.hpp"
#include "layout/layout.hpp"
#include "memory/device.hpp"
#include "memory/ledger.hpp"
#include "memory/lent_memory.hpp"
#include "memory/placed_memory.hpp"
#include "memory/region.hpp"
#include "model/weights.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {

/// What has become of an engine's memory of a tag.
struct Change {
  enum class Kind : uint8_t {
    kTaken,      ///< Its memory is there, with undefined content.
    kResumed,    ///< Its memory is there, with the bytes that it had when it was released.
    kCommitted,  ///< Its weights are those of a version that every rank has agreed on.
  };
  Kind kind = Kind::kTaken;
  uint64_t version = 0;  ///< Of kCommitted.
};

/// What an engine asks for of its device, in bytes by what they are for.
struct EngineNeeds {
  uint64_t weights = 0;  ///< 0: what its layout holds.
  uint64_t optimizer = 0;
  uint64_t kv_cache = 0;
  bool lends_weights = false;  ///< A trainer's are in memory of its own: it needs none,
  bool moves_weights = false;  ///< and moves it away and back itself.
};

/// What of the trainers' memory a take-back brings.
enum class TakenBack : uint8_t { kAll, kWeights };

/// A command that an engine asks for.
enum class EngineWish : uint8_t { kNone, kHandOver, kTakeBack, kTakeBackWeights };

/// How an engine that is a process of its own stands. Plain data, to be gathered.
struct Attendance {
  int pid = 0;  ///< Its process; 0 for none, and for an engine that is built in.
  FixedText<48>
      state{};  ///< "ready", "busy", "lost since …", "detached …"; empty for one that is built in.
  bool is_here = true;       ///< It takes part.
  bool is_torn = false;      ///< It was lost while it wrote: its memory is of no step.
  bool has_all = false;      ///< A trainer that has all its memory,
  bool has_weights = false;  ///< or that much of it.
  EngineWish wish = EngineWish::kNone;
  uint64_t own_bytes = 0;  ///< Of the GPU that are its own: what it lends, and what it has told of.
};

/// How a command has ended, the same on every rank.
struct CommandOutcome {
  bool is_hand_over = false;  ///< The trainers' memory was to be given over,
  bool is_take_back = false;  ///< or to come back.
  uint64_t version = 0;       ///< Last committed, 0 for none.
  std::optional<Error> error{};
  bool all_consented = false;  ///< All engines had consented to it.
};

/// What plays a role on a rank: memory by tag, the tensors that lie in it, and what has to be done
/// when that memory goes and comes. Everything that a cycle needs to know of a trainer or an
/// inference engine is here; what they compute is theirs.
///
/// The cycle offloads, discards, takes, reads and writes the memory; the engine does not touch a
/// tag's memory between before_release and the after_change that says that it is back, and
/// inference does not touch its weights until they are committed. Calls block until done and are
/// not collective; they throw on this rank alone, Error(kDeadline) and what the monitor throws
/// included.
class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  Engine(Engine&&) = delete;
  Engine& operator=(Engine&&) = delete;
  virtual ~Engine() = default;

  /// What people know it by, for `status`: "built in". At most 31 bytes.
  [[nodiscard]] virtual std::string name() const = 0;
  /// Its memory of a tag, the same for life; null where it holds none. Every engine has weights,
  /// but for a trainer that lends its own (TrainerEngine::lent).
  [[nodiscard]] virtual Region* region(Tag tag) = 0;
  /// Where its memory of a tag lies; all its bytes are there while the region is resident. As a
  /// rule it is the region; an inference engine's weights may also be pieces of any memory, which
  /// its region then stands for, and a trainer's pieces of its region, as others map that.
  [[nodiscard]] virtual PlacedMemory placed(Tag tag);
  /// How often what `placed` says has become another: when an engine has moved its weights, the
  /// next transfer is from or to there. Nothing moves while the cycle works on it.
  [[nodiscard]] virtual uint64_t moves() const { return 0; }
  /// The tensors that it declares in its memory of a tag, by its own names; places are those that
  /// `placed` is asked for. What no tensor covers is not proven over an offload. None for a tag
  /// that it does not hold.
  [[nodiscard]] virtual std::vector<Parameter> tensors(Tag tag) const = 0;

  /// Before a command gives memory over: returns when the engine is where that may be done. An
  /// engine whose memory the command leaves as it is (a take-back: trainers have what it brings,
  /// inference has none) is not waited for. Throws Error(kDeadline) that names an engine that is
  /// busy, Error(kPeerLost) for one that has gone.
  virtual void await_ready(std::optional<TakenBack> /*take_back*/, const Deadline& /*deadline*/,
                           WaitMonitor& /*monitor*/) {}
  /// Within a command: all engines of its role have the memory that it brings, and the rest of the
  /// command leaves that alone. The engine may go on; `end` is as if the command were over.
  virtual void go_on(const CommandOutcome& /*end*/) {}
  /// A command is over; nothing more of it touches the engine's memory.
  virtual void command_over(const CommandOutcome& /*end*/) {}
  /// The command that it waits for, if any; cheap.
  [[nodiscard]] virtual EngineWish wish() { return EngineWish::kNone; }
  /// How it stands now, for people; cheap.
  [[nodiscard]] virtual Attendance attendance() const { return {}; }
  /// At rest, from time to time: lets an engine come in place of one that was lost. Throws what
  /// bringing its memory into a state that it can go on from throws.
  virtual void attend(WaitMonitor& /*monitor*/) {}

  /// Before the cycle begins: a trainer takes its memory and fills it; inference may do so.
  virtual void load(const Deadline& deadline, WaitMonitor& monitor) = 0;
  /// All ranks have loaded: the engine may go on; or may not, with an error that all ranks throw
  /// next.
  virtual void loaded(const std::optional<Error>& /*refusal*/, const Deadline& /*deadline*/,
                      WaitMonitor& /*monitor*/) {}
  /// The memory of a tag is about to be given back; no work of the engine on it may be in flight on
  /// return.
  virtual void before_release(Tag tag, const Deadline& deadline, WaitMonitor& monitor) = 0;
  /// The memory of a tag is back, or its content is another. Not called where a call of the cycle
  /// changed nothing.
  virtual void after_change(Tag tag, const Change& change, const Deadline& deadline,
                            WaitMonitor& monitor) = 0;
};

/// Whole elements of a tensor that lie in one chunk of a tag's memory, and what they add to the
/// tensor's digest (model/digest.hpp).
struct DigestedRun {
  std::string name;
  uint64_t offset_bytes = 0;  ///< In the tag's memory.
  uint64_t bytes = 0;
  uint32_t element_size = 4;
  uint64_t first_index = 0;  ///< Elements of the tensor before these.
  uint64_t digest = 0;
};
/// What a chunk holds; nothing where that is not known.
using ChunkDigests = std::optional<std::vector<DigestedRun>>;

/// An engine that trains.
class TrainerEngine : public Engine {
 public:
  /// A training step on all weights; all its memory is there.
  virtual void train(const Deadline& deadline, WaitMonitor& monitor) = 0;
  /// Training steps so far. One whose call failed counts where it is done once the device is idle:
  /// after a failure trainers that have taken fewer catch up.
  [[nodiscard]] virtual uint64_t steps() const = 0;
  /// How often its weights may have become others. An engine that counts its steps changes them in
  /// steps alone.
  [[nodiscard]] virtual uint64_t changes() const { return steps(); }
  /// Ways to bring its memory back as it was when it was copied to host memory last, and to copy a
  /// tag's that is resident there; both proven. It uses them at rest.
  struct Copies {
    std::function<void(WaitMonitor&)> restore;
    std::function<void(Tag, WaitMonitor&)> back_up;
  };
  virtual void copy_by(const Copies& /*copies*/) {}
  /// A chunk of its memory of a tag is in host memory, and is given back next: whoever else has it
  /// mapped lets it go. With the digests of what it holds, unless it leaves without a proof. After
  /// a throw it stays.
  virtual void chunk_copied(Tag /*tag*/, uint64_t /*chunk*/, const ChunkDigests& /*digests*/,
                            const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) {}
  /// What it lends of its own memory, where it keeps its weights in place of a region; null for one
  /// that does not, or has moved them away. `before_release` and `after_change` of weights are
  /// called for one whose lent memory does not stay: it moves it itself.
  [[nodiscard]] virtual const LentMemory* lent() const { return nullptr; }
  /// Whether it moves what it lends when its memory is to go.
  [[nodiscard]] virtual bool moves_lent() const { return false; }
  /// At rest, the same on every trainer: whether those that are lost return to what they handed
  /// over last, as not all of them have come equally far.
  virtual void hear_of_others(bool /*must_return*/) {}
};

/// What an engine is made of and with. All of it outlives the engine.
struct EngineParts {
  const Catalogue& catalogue;  ///< The layout's: for inference the held one.
  const RankLayout& layout;    ///< What the rank holds, and where in its weights region.
  Device& device;
  MemoryLedger& ledger;  ///< On which its regions book their memory.
  Kernels& kernels;
  CopyQueue& queue;
  WaitMonitor& monitor;    ///< For waits while it is made.
  Seconds silence;         ///< That each of them may take.
  EngineNeeds needs{};     ///< What the factory's `await_engine` has returned on this rank.
  uint32_t role_rank = 0;  ///< Position among the ranks of its role.
  std::string spec{};      ///< Of its layout, as users know it: "megatron:tp=2".
};

/// The room that weights take which a layout of `layout_bytes` holds: an engine may place them in
/// more, or in memory of its own.
[[nodiscard]] constexpr uint64_t room_for_weights(uint64_t layout_bytes, const EngineNeeds& needs) {
  if (needs.lends_weights) return 0;
  return std::max(layout_bytes, round_up(needs.weights, kParameterAlignment));
}

struct TrainerParts {
  EngineParts common;
  const WeightSource& source;  ///< What it begins with.
  uint64_t weights_bytes = 0;  ///< Of all that is read of its weights: what lies behind the
                               ///< layout's is not its own (layout/trainer_scales.hpp).
  bool optimizer = true;       ///< Whether it holds an optimizer's state.
  ThreadPool& threads;
};

struct InferenceParts {
  EngineParts common;
  uint64_t kv_cache_bytes = 0;  ///< 0 for none.
};

/// Makes the engines of a job's ranks. A call makes this rank's. One that is built in reserves
/// addresses and takes no memory; one that attaches has what it loads into when the call returns.
class EngineFactory {
 public:
  EngineFactory() = default;
  EngineFactory(const EngineFactory&) = delete;
  EngineFactory& operator=(const EngineFactory&) = delete;
  EngineFactory(EngineFactory&&) = delete;
  EngineFactory& operator=(EngineFactory&&) = delete;
  virtual ~EngineFactory() = default;

  /// Whether engines of their own processes play a role; the same on every rank.
  [[nodiscard]] virtual bool attaches(Role /*role*/) const { return false; }
  /// Whether inference engines have weights when they are made, to be proven before the first
  /// transfer; the same on every rank.
  [[nodiscard]] virtual bool admits_by_digest() const { return false; }
  /// Waits for the engine of this rank, if it is one that attaches, and returns what it needs.
  [[nodiscard]] virtual EngineNeeds await_engine(Role /*role*/, uint32_t /*position*/,
                                                 const Device& /*device*/,
                                                 WaitMonitor& /*monitor*/) const {
    return {};
  }
  [[nodiscard]] virtual std::unique_ptr<TrainerEngine> make_trainer(
      const TrainerParts& parts) const = 0;
  [[nodiscard]] virtual std::unique_ptr<Engine> make_inference(
      const InferenceParts& parts) const = 0;
};

/// Makes the engines that are built in (docs/design.md, "Built-in roles are stand-ins, not mocks").
[[nodiscard]] const EngineFactory& built_in_engines();

/// Throws a request error that names the first tensor that an engine declares otherwise than its
/// rank's layout has it, or that one of them lacks: name, dtype, shape or place.
void check_declared(const std::vector<Parameter>& declared, const RankLayout& layout);

}  // namespace awex
