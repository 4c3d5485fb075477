#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attach/channel.hpp"
#include "attach/control_page.hpp"
#include "attach/engine_record.hpp"
#include "attach/message.hpp"
#include "base/wait.hpp"
#include "memory/lent_memory.hpp"

namespace awex::attach {

/// What an engine lends of its own memory, and where its tensors of weights lie in it: their places
/// are addresses in its process.
struct Loan {
  std::vector<Lending> lendings;
  std::vector<Parameter> tensors;
};

/// The rank's side of the conversation with its engine: a socket in a private directory, at which
/// one engine at a time attaches (peer credentials checked: this user's alone), and a thread that
/// reads what it says. The thread makes no MPI call and touches no device. All calls are the rank's
/// main thread's; those that wait poll the monitor and throw Error(kDeadline) that names the
/// engine, and Error(kPeerLost) when it has gone.
class Door {
 public:
  /// Where the engine is in its life.
  enum class State : uint8_t {
    kAbsent,    ///< None has come yet.
    kGreeted,   ///< One has said kHello and waits for its welcome.
    kAttached,  ///< It has been welcomed, and declares.
    kSealed,    ///< It takes part; busy unless it is ready.
    kLost,      ///< It has gone without a word, or left.
  };

  /// Opens the socket and writes the record, but for its `socket`, which is the door's, and removes
  /// what ranks of this host have left there that have ended without a word. `wake` is
  /// called, on the thread, when an engine comes, goes, or wishes for a command; it may be null.
  /// Throws run-time and request errors.
  Door(const std::string& job_directory, EngineRecord record, std::function<void()> wake);
  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;
  Door(Door&&) = delete;
  Door& operator=(Door&&) = delete;
  /// Tells the engine that the job ends, if one is there, and removes socket and record.
  ~Door();
  /// What it tells then; without it that the end is in order.
  void end_with(const Error& error);

  [[nodiscard]] State state() const;
  /// Its hello; after kGreeted.
  [[nodiscard]] ToRank hello() const;
  /// "vllm 0.32.0 (pid 4711)"; "no engine" before one has come.
  [[nodiscard]] std::string describe() const;
  /// Its process; 0 before one has come.
  [[nodiscard]] int pid() const;
  /// "lost since 2026-01-02T03:04:05Z", or "detached ..." where it has gone in order.
  [[nodiscard]] std::string describe_loss() const;
  [[nodiscard]] bool has_detached() const;
  /// Whether it consents now, and to what it wishes.
  [[nodiscard]] bool is_ready() const;
  [[nodiscard]] EngineWish wish() const;
  [[nodiscard]] ControlPage& page();
  /// What is to be said where an engine is needed and none is there: Error(kPeerLost) with who and
  /// since when.
  [[nodiscard]] Error lost_error() const;

  /// Waits for an engine; with `patience` in all, during which the monitor is told of progress.
  void await_hello(Seconds patience, WaitMonitor& monitor);
  /// Lets it in, with what a former engine had kept, if anything.
  void welcome(ToEngine message, std::string_view kept, const Deadline& deadline,
               WaitMonitor& monitor);
  /// Tells why it is not let in, and hangs up.
  void refuse(const Error& error) noexcept;
  /// What it declares, once it has; each is told once.
  [[nodiscard]] std::optional<ToRank> next_seal();
  /// What it has lent last, once: with a seal, or with its answer to a kMap.
  [[nodiscard]] Loan take_loan();
  /// The bytes of the device that it has told of as its own.
  [[nodiscard]] uint64_t booked_bytes() const;
  /// Waits for it, while the monitor is told of progress.
  [[nodiscard]] ToRank await_seal(Seconds patience, WaitMonitor& monitor);
  /// Without an error it takes part from then on; else it may declare anew.
  void answer_seal(const std::optional<Error>& error, const Deadline& deadline,
                   WaitMonitor& monitor);
  /// Waits for its consent, which then holds until kOver is told. `meanwhile` is called between two
  /// looks; an engine that has been lost may come back meanwhile.
  void await_ready(const Deadline& deadline, WaitMonitor& monitor,
                   const std::function<void()>& meanwhile = {});
  /// The same without waiting: if there is a consent, it holds until kOver is told.
  void use_consent();
  /// Sends a kMap, kRelease, kChanged or kCopied to the engine that was welcomed last and waits for
  /// its kAck; throws the engine's error.
  void ask(const ToEngine& message, std::span<const int> fds, const Deadline& deadline,
           WaitMonitor& monitor);
  /// Tells without an answer: kOver, to an engine whose consent was waited for, and ends with it;
  /// kEnd.
  void tell(const ToEngine& message) noexcept;
  /// What the trainer wanted kept last; empty for nothing.
  [[nodiscard]] std::string kept() const;

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

}  // namespace awex::attach
