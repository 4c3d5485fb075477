#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "attach/channel.hpp"
#include "attach/control_page.hpp"
#include "attach/library/arena.hpp"
#include "attach/library/find_rank.hpp"
#include "attach/library/host_copy.hpp"
#include "attach/message.hpp"
#include "memory/lent_memory.hpp"
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

/// The control page of the rank, mapped here.
class MappedPage {
 public:
  /// Throws run-time errors, also for what is no control page.
  explicit MappedPage(const UniqueFd& fd);
  MappedPage(const MappedPage&) = delete;
  MappedPage& operator=(const MappedPage&) = delete;
  MappedPage(MappedPage&&) = delete;
  MappedPage& operator=(MappedPage&&) = delete;
  ~MappedPage();
  [[nodiscard]] ControlPage& operator*() const { return *page_; }

 private:
  ControlPage* page_ = nullptr;
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

  void declare(Tag tag, const Parameter& parameter);
  /// A tensor of weights in memory of this engine's own; its place is an address.
  void declare_own(const Parameter& parameter);
  void seal(Seconds timeout);

  /// The version that was committed.
  [[nodiscard]] uint64_t hand_over(Seconds timeout);
  void take_back(Seconds timeout);
  [[nodiscard]] uint64_t wait(uint64_t newer_than, Seconds timeout);
  void release(Seconds timeout);
  void ready(Seconds timeout);

  /// Brings back the memory that was away when the rank was lost, into this process's own. Returns
  /// whether all of it was proven.
  bool restore();

  void begin_writing();
  void end_writing();
  void book(const std::string& what, uint64_t bytes);
  void keep(std::string bytes);
  [[nodiscard]] const std::string& kept() const { return kept_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Memory {
    std::unique_ptr<MappedChunks> chunks;
    std::shared_ptr<Arena> arena;
    std::unique_ptr<OwnedChunks> restored;  ///< This process's own, once the rank is gone.
    HostCopy copy;                          ///< Of a trainer's bytes while they are away.
    bool proven = true;                     ///< Of what was restored: it has been compared.
    bool untold = false;                    ///< It is restored, and the engine has not been told.
    uint64_t come = 0;                      ///< Chunks that are mapped, from the first on.
    bool mapped = false;
    bool has_content = false;  ///< When it was mapped.
  };
  class Call;

  void attach(Seconds timeout);
  void take_welcome(Frame frame);
  void reserve_memory();
  void begin_list();
  void add(Tag tag, const Parameter& parameter);
  void find_blocks(const Parameter& parameter);
  void lend();
  void call_own_back();
  void bring_back_own();
  [[nodiscard]] Memory& memory(Tag tag) { return memory_.at(static_cast<size_t>(tag)); }
  [[nodiscard]] const Memory& memory(Tag tag) const { return memory_.at(static_cast<size_t>(tag)); }
  [[nodiscard]] bool has_own_weights() const { return own_weights_ != OwnWeights::kNone; }
  [[nodiscard]] bool all_mapped() const;
  [[nodiscard]] bool none_mapped() const;

  void expect_role(Role role, const char* call) const;
  void expect_sealed(const char* call) const;
  /// What a command that is over means for the call that consented to it: whether that is done.
  using IsDone = std::function<bool(const ToEngine& over)>;
  ToEngine take_part(const char* name, EngineWish wish, uint64_t newer_than, Seconds timeout,
                     const IsDone& is_done);
  [[nodiscard]] std::optional<ToEngine> await_over(Clock::time_point until);
  [[nodiscard]] std::optional<ToEngine> hear_of_withdrawal();
  void note_loss();
  void expect_rank_gone() const;
  bool restore(Tag tag);
  void note_copied(const ToEngine& message, std::vector<UniqueFd> fds);
  [[nodiscard]] Error deadline_error(const char* call, Seconds timeout,
                                     const std::optional<Error>& last) const;

  /// The next message that is no request, until then; requests are done on the way.
  [[nodiscard]] std::optional<ToEngine> hear(Clock::time_point until);
  [[nodiscard]] bool hear_request(Clock::time_point until);
  [[nodiscard]] std::optional<ToEngine> take(Frame& frame);
  [[nodiscard]] std::optional<Frame> receive(Clock::time_point until);
  void note_served();
  [[nodiscard]] bool serve(const ToEngine& message, std::vector<UniqueFd>& fds);
  void map(const ToEngine& message, std::vector<UniqueFd> fds);
  void release(Tag tag);
  void unmap(Memory& of_tag) const;
  void call_back(const EngineCallback& callback, const char* what, Tag tag) const;
  void say(const ToRank& message, std::span<const int> fds = {});
  [[noreturn]] void lose(const Error& error);

  Role role_;
  std::string job_;
  std::unique_ptr<Channel> channel_;
  std::unique_ptr<MappingDevice> device_;
  std::unique_ptr<MappedPage> page_;
  ToEngine welcome_;
  GpuUuid uuid_{};
  int rank_pid_ = 0;
  std::optional<uint64_t> rank_start_;  ///< ProcessStat::start_time, where it can be known.
  std::set<std::string> booked_;        ///< What the engine has told of as its own.
  std::array<Memory, 3> memory_;
  OwnWeights own_weights_;
  bool own_is_away_ = false;           ///< The engine has moved what it lends.
  bool may_declare_ = false;           ///< It brings that back just now, maybe to other places.
  std::map<uint64_t, Lending> lends_;  ///< By address.
  std::array<std::vector<Parameter>, 3> declared_;
  std::array<std::set<std::string>, 3> names_;  ///< Of what is declared.
  bool begins_declaring_ = false;               ///< The next declaration begins a new list.
  bool seal_pending_ = false;                   ///< A seal has not been answered yet.
  bool sealed_ = false;
  std::atomic<bool> in_call_{false};
  uint64_t version_ = 0;
  uint64_t served_ = 0;  ///< By inference, with all memory here and on all ranks; 0 for none.
  std::string kept_;
  EngineCallbacks callbacks_;
  std::optional<Error> lost_;
};

}  // namespace awex::attach
