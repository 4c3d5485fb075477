#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "attach/library/arena.hpp"
#include "attach/library/declaration.hpp"
#include "attach/library/find_rank.hpp"
#include "attach/library/mapped_page.hpp"
#include "attach/library/rank_link.hpp"
#include "attach/library/tag_memory.hpp"
#include "attach/message.hpp"
#include "memory/mapping_device.hpp"

namespace awex::attach {

struct ParticipantOptions {
  RankWanted rank;
  std::string name;  ///< Of the engine.
  BytesByTag bytes{};
  OwnWeights own_weights = OwnWeights::kNone;
  Seconds timeout{0};
};

/// A callback of the engine: 0, or else the command fails.
using EngineCallback = std::function<int(Tag tag, uint64_t version)>;

struct EngineCallbacks {
  EngineCallback before_release;
  EngineCallback after_resume;
  EngineCallback weights_changed;
};

/// An engine's side of its attachment: what the C interface (include/awex_colocate.h) says of an
/// engine. It has no thread: what the rank asks for is done while a call here waits, and at no
/// other time. Calls throw; Error(kPeerLost) from every later one once the rank has gone, and the
/// mappings stay as they are. Not thread safe, but for the arenas.
class Participant {
 public:
  /// Attaches.
  explicit Participant(const ParticipantOptions& options);
  Participant(const Participant&) = delete;
  Participant& operator=(const Participant&) = delete;
  Participant(Participant&&) = delete;
  Participant& operator=(Participant&&) = delete;
  /// Detaches: unmaps everything and tells the rank.
  ~Participant();

  /// What the rank said when it welcomed this engine: place in the job, layout, sizes.
  [[nodiscard]] const ToEngine& welcome() const { return welcome_; }
  [[nodiscard]] Role role() const { return role_; }
  [[nodiscard]] uint64_t version() const { return version_; }
  /// Null where the engine has no memory of the tag.
  [[nodiscard]] std::byte* address(Tag tag) const;
  [[nodiscard]] bool is_mapped(Tag tag) const;
  /// Null where the engine has no memory of the tag; may outlive this.
  [[nodiscard]] std::shared_ptr<Arena> arena(Tag tag) const;
  EngineCallbacks& callbacks() { return callbacks_; }

  void map_placeholder(Tag tag);
  void declare(Tag tag, const Parameter& parameter);
  /// A tensor of weights in memory of this engine's own; its place is an address.
  void declare_own(const Parameter& parameter);
  void seal(Seconds timeout);

  /// The version that was committed.
  [[nodiscard]] uint64_t hand_over(Seconds timeout);
  void take_back(Seconds timeout);
  void take_back_weights(Seconds timeout);
  [[nodiscard]] uint64_t wait(uint64_t newer_than, Seconds timeout);
  void release(Seconds timeout);
  void ready(Seconds timeout);

  /// Brings back the memory that was away when the rank was lost, into this process's own. Returns
  /// whether all of it was proven.
  bool restore();

  /// Throws where the rank is lost; does not wait.
  void check();

  void begin_writing();
  void end_writing();
  void book(const std::string& what, uint64_t bytes);
  void keep(std::string bytes);
  [[nodiscard]] const std::string& kept() const { return kept_; }

 private:
  class Call;

  [[nodiscard]] std::optional<Frame> meet_rank(const ParticipantOptions& options,
                                               Clock::time_point until);
  void attach(std::optional<Frame> frame, Clock::time_point until, Seconds timeout);
  void take_welcome(Frame frame);
  [[nodiscard]] bool hear_of_seal(Clock::time_point until);
  void reserve_memory();
  /// What the welcome has told of has come.
  [[nodiscard]] bool is_complete() const;
  [[nodiscard]] TagMemory* memory(Tag tag) const {
    return memory_.at(static_cast<size_t>(tag)).get();
  }
  /// Throws for memory that the rank speaks of and this engine has not.
  [[nodiscard]] TagMemory& memory_told_of(Tag tag) const;
  [[nodiscard]] bool has_own_weights() const { return own_weights_ != OwnWeights::kNone; }
  [[nodiscard]] bool are_own(Tag tag) const { return tag == Tag::kWeights && has_own_weights(); }
  [[nodiscard]] bool all_mapped() const;
  [[nodiscard]] bool has_weights() const;
  [[nodiscard]] bool none_mapped() const;

  void unmap_placeholders();
  void lend();
  void lend_anew();
  void call_own_back();
  void bring_back_own();

  void expect_role(Role role, const char* call) const;
  void expect_sealed(const char* call) const;
  void expect_whole(const char* call) const;
  /// What a command that is over means for the call that consented to it: whether that is done.
  using IsDone = std::function<bool(const ToEngine& over)>;
  ToEngine take_part(const char* name, EngineWish wish, uint64_t newer_than, Seconds timeout,
                     const IsDone& is_done);
  void bring_back(const char* name, EngineWish wish, Seconds timeout,
                  bool (Participant::*is_there)() const);
  [[nodiscard]] std::optional<ToEngine> await_over(Clock::time_point until);
  [[nodiscard]] std::optional<ToEngine> hear_of_withdrawal();
  void note_loss();
  void restore(Tag tag);
  void expect_no_other() const;

  /// The next message that is no request, until then; requests are done on the way.
  [[nodiscard]] std::optional<ToEngine> hear(Clock::time_point until);
  /// All that has come while the engine was in no call.
  void hear_what_came();
  [[nodiscard]] bool hear_request(Clock::time_point until);
  [[nodiscard]] std::optional<ToEngine> take(Frame& frame);
  void note_served();
  [[nodiscard]] bool serve(const ToEngine& message, std::vector<UniqueFd>& fds);
  void map(const ToEngine& message, std::vector<UniqueFd> fds);
  void release(Tag tag);
  void expect_rank();
  void note_copied(const ToEngine& message, std::vector<UniqueFd> fds);
  void call_back(const EngineCallback& callback, const char* what, Tag tag) const;

  Role role_;
  OwnWeights own_weights_;
  std::optional<RankLink> link_;
  GpuUuid uuid_{};
  ToEngine welcome_;
  std::optional<MappedPage> page_;
  uint64_t number_ = 0;  ///< Of this engine, among the rank's.
  std::unique_ptr<MappingDevice> device_;
  std::array<std::unique_ptr<TagMemory>, 3> memory_;
  std::array<bool, 3> untold_{};  ///< By tag: it is restored, and the engine has not been told.
  Declaration declaration_;
  enum class Seal : uint8_t { kOpen, kPending, kSealed };
  Seal seal_ = Seal::kOpen;
  bool own_is_away_ = false;     ///< The engine has moved what it lends.
  bool is_handed_over_ = false;  ///< With weights of its own: inference has had its turn since.
  bool own_comes_back_ = false;  ///< It brings that back just now, maybe to other places.
  std::atomic<bool> in_call_{false};
  uint64_t version_ = 0;
  uint64_t served_ = 0;  ///< By inference, with all memory here and on all ranks; 0 for none.
  std::string kept_;
  std::set<std::string> booked_;  ///< What the engine has told of as its own.
  EngineCallbacks callbacks_;
};

}  // namespace awex::attach
