#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "attach/declared.hpp"
#include "attach/door.hpp"
#include "engine/engine.hpp"
#include "memory/lent_memory.hpp"
#include "memory/region.hpp"

namespace awex::attach {

/// What both roles' attached engines have in common: an engine at the door, and which of the rank's
/// memory it has mapped. Calls are the rank's main thread's.
class Attachment {
 public:
  struct Settings {
    Role role = Role::kTrainer;
    int rank = 0;
    std::string host;
    Seconds patience{600};     ///< For an engine to come and to seal, at the start.
    bool takes_memory = true;  ///< Commands take it; false under --no-offload.
  };
  /// What a new engine finds in the memory.
  struct Inheritance {
    bool is_left = false;  ///< Something that a former engine has left;
    std::string kept;      ///< with what it wanted kept.
  };
  /// Asked when an engine has come in another's place, before it is welcomed.
  using Inherit = std::function<Inheritance(WaitMonitor&)>;

  /// All that it refers to outlives it. `regions` by tag, null where there is none; `own_bytes` of
  /// the weights' region are the engine's. Without such a region the engine lends its own memory.
  Attachment(Door& door, Settings settings, const EngineParts& parts,
             std::array<Region*, 3> regions, uint64_t own_bytes);

  /// Lets the first engine in, maps what is resident and waits until it has sealed what fits. It
  /// then waits for `loaded`.
  void begin(WaitMonitor& monitor);
  /// Ends its sealing.
  void loaded(const std::optional<Error>& refusal, const Deadline& deadline, WaitMonitor& monitor);
  /// Lets another in, step by step, when one has come; `inherit` says to what. Errors are the
  /// engine's: they refuse it.
  void attend(const Inherit& inherit, WaitMonitor& monitor);

  void await_ready(const Deadline& deadline, WaitMonitor& monitor, const Inherit& inherit) {
    door_.await_ready(deadline, monitor, [&] { attend(inherit, monitor); });
  }
  /// Whether an engine takes part, and has so much of its rank's memory mapped.
  [[nodiscard]] bool has(TakenBack what) const;
  /// Whether none of the rank's memory is mapped, surely, by an engine that is there or lost.
  [[nodiscard]] bool has_none() const;
  /// Asks for a tag's memory; nothing where the engine has it not. A trainer keeps it mapped, but
  /// for what `let_go` asks for: all that is on the device is there for it as well, should the rank
  /// be lost.
  void release(Tag tag, const Deadline& deadline, WaitMonitor& monitor);
  /// The same of an engine that is lost and whose process has ended, or ends now: nothing of it
  /// maps the memory any more. Whether that is so.
  [[nodiscard]] bool release_of_ended(Tag tag, WaitMonitor& monitor);
  /// A chunk of a trainer's tag that is released is in host memory, and what it holds, if that is
  /// known: the engine unmaps it, where it has it. It may bring it back without the rank, should
  /// that be lost. Told to those that attach later, too, as long as it is so.
  void let_go(Tag tag, uint64_t chunk, const ChunkDigests& digests, const Deadline& deadline,
              WaitMonitor& monitor);
  /// Gives it a tag's memory, all of which is taken; nothing where it has it.
  void map(Tag tag, bool has_content, const Deadline& deadline, WaitMonitor& monitor);
  /// What the engine lends of its own memory, and where that is open here; null where it lends
  /// nothing, or has moved it away.
  [[nodiscard]] const LentMemory* lent() const { return lent_ ? &*lent_ : nullptr; }
  [[nodiscard]] const BorrowedMemory* borrowed() const { return borrowed_ ? &*borrowed_ : nullptr; }
  [[nodiscard]] bool moves_lent() const { return own_weights_ == OwnWeights::kMoves; }
  /// How often it has lent.
  [[nodiscard]] uint64_t loans() const { return loans_; }
  /// How many engines have sealed.
  [[nodiscard]] uint64_t seals() const { return seals_; }

  void tell_changed(uint64_t version, const Deadline& deadline, WaitMonitor& monitor);
  /// Tells the engine that the command is over before it is.
  void go_on(const CommandOutcome& end);
  /// Tells that a command is over, unless it was for this engine before.
  void command_over(const CommandOutcome& end);
  [[nodiscard]] EngineWish wish() const { return door_.wish(); }
  [[nodiscard]] Attendance attendance() const;
  [[nodiscard]] std::string name() const;

  /// Where the layout's weights lie, in its order; after `begin`.
  [[nodiscard]] const std::vector<Parameter>& places() const { return places_; }
  [[nodiscard]] const std::vector<Parameter>& declared(Tag tag) const {
    return declared_.at(static_cast<size_t>(tag));
  }
  [[nodiscard]] int rank() const { return settings_.rank; }
  [[nodiscard]] Door& door() const { return door_; }
  /// Whether an engine has ever sealed.
  [[nodiscard]] bool has_sealed() const { return has_sealed_; }
  [[nodiscard]] uint64_t version() const { return version_; }
  /// How often the engine has had weights mapped.
  [[nodiscard]] uint64_t weights_given() const { return weights_given_; }
  /// Whether a tag's memory has bytes that the engine may read.
  void set_content(Tag tag, bool has_content) {
    has_content_.at(static_cast<size_t>(tag)) = has_content;
  }

 private:
  /// What the engine has of a tag's memory, as far as is known.
  enum class Mapped : uint8_t {
    kNo,
    kYes,
    kLeaving,  ///< A trainer: what it has not let go.
    kUnsure,
  };

  void welcome(const Inheritance& inheritance, const Deadline& deadline, WaitMonitor& monitor);
  void check_bytes() const;
  void check_own_weights() const;
  [[nodiscard]] bool has_ended(WaitMonitor& monitor) const;
  [[nodiscard]] bool lends(Tag tag) const {
    return tag == Tag::kWeights && own_weights_ != OwnWeights::kNone;
  }
  [[nodiscard]] std::optional<Error> differences_of(const std::vector<Parameter>& weights) const;
  [[nodiscard]] uint64_t own_bytes() const;
  void borrow(Loan loan);
  void forget_lent();
  [[nodiscard]] bool is_others(Tag tag) const;
  [[nodiscard]] std::optional<Error> look_at_seal(const ToRank& seal) const;
  void accept(const ToRank& seal);
  [[nodiscard]] Mapped& mapped(Tag tag) { return mapped_.at(static_cast<size_t>(tag)); }
  [[nodiscard]] Region* region(Tag tag) const { return regions_.at(static_cast<size_t>(tag)); }
  [[nodiscard]] bool is_away(Tag tag) const;
  /// 0 for memory that is not the rank's.
  [[nodiscard]] uint64_t chunks_of(Tag tag) const {
    return region(tag) == nullptr ? 0 : region(tag)->range().chunks();
  }
  void send_copied(Tag tag, uint64_t first, uint64_t count, const Deadline& deadline,
                   WaitMonitor& monitor);
  void ask_for_own(const Deadline& deadline, WaitMonitor& monitor);
  void send_chunks(Tag tag, bool has_content, const Deadline& deadline, WaitMonitor& monitor);
  void send_mapped(Tag tag, uint64_t first, uint64_t count, bool has_content,
                   const Deadline& deadline, WaitMonitor& monitor);

  Door& door_;
  Settings settings_;
  EngineParts parts_;
  std::array<Region*, 3> regions_;
  uint64_t own_bytes_;
  OwnWeights own_weights_ = OwnWeights::kNone;  ///< Of the first engine, and of all after it.
  std::optional<LentMemory> lent_;
  std::optional<BorrowedMemory> borrowed_;  ///< The same, open here.
  uint64_t loans_ = 0;
  uint64_t seals_ = 0;
  std::array<Mapped, 3> mapped_{};
  std::array<bool, 3> has_content_{};
  /// What host memory holds of a tag's chunks, where that is known.
  std::array<std::vector<ChunkDigests>, 3> holds_;
  std::array<std::vector<bool>, 3> has_descriptor_;  ///< The engine has a chunk's copy's.
  int engine_pid_ = 0;                               ///< Of the one that all this is about.
  std::array<std::vector<Parameter>, 3> declared_;
  std::vector<Parameter> places_;
  bool has_sealed_ = false;
  bool told_of_loss_ = false;
  bool goes_on_ = false;  ///< Since before the end of the command that runs.
  uint64_t version_ = 0;
  uint64_t weights_given_ = 0;
};

}  // namespace awex::attach
