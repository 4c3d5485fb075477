#include "attach/library/participant.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "base/build_identity.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "base/whole_file.hpp"

namespace awex::attach {
namespace {

/// How long an engine waits for its rank's welcome before it says so.
constexpr Seconds kQuiet{3};
/// Between two tries to meet a rank.
constexpr std::chrono::milliseconds kBetweenMeetings{20};
/// How often a call that withdraws its consent looks whether the rank is stopped,
constexpr Seconds kSleep{1};
/// and how long it may keep that call; a debugger stops it for less.
constexpr Seconds kLongestStop{3};

std::string read_kept(const UniqueFd& fd, uint64_t bytes) {
  auto kept = read_from_start(fd.get(), bytes);
  if (!kept) throw errno_error("read what was kept", "pread", errno);
  if (kept->size() < bytes) {
    throw runtime_error(fmt::format("what was kept has {} of {} bytes", kept->size(), bytes),
                        kOtherBuild);
  }
  return std::move(*kept);
}

UniqueFd file_of(const std::string& bytes) {
  UniqueFd fd(::memfd_create("awex-kept", MFD_CLOEXEC));
  if (!fd.valid()) throw errno_error("keep bytes", "memfd_create", errno);
  if (!write_from_start(fd.get(), bytes)) throw errno_error("keep bytes", "pwrite", errno);
  return fd;
}

Error not_done(const char* call, Seconds timeout, const std::optional<Error>& last) {
  const auto failure = last ? fmt::format("; the last one failed: {}", last->what()) : "";
  return {ExitCode::kDeadline,
          fmt::format("{}: no command of the job has done it after {}{}", call,
                      format_seconds(timeout.count()), failure),
          "awex-colocate status --job DIR tells what the job waits for"};
}

}  // namespace

/// Marks that a call waits: callbacks must not begin another one. Most calls need the rank.
class Participant::Call {
 public:
  explicit Call(Participant& participant, bool needs_rank = true) : participant_(participant) {
    if (needs_rank) participant_.link_->expect_there();
    if (participant_.in_call_.exchange(true)) {
      throw request_error("another call on this engine has not returned yet",
                          "callbacks and other threads must not wait for the job");
    }
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  Call(Call&&) = delete;
  Call& operator=(Call&&) = delete;
  ~Call() { participant_.in_call_ = false; }

 private:
  Participant& participant_;
};

Participant::Participant(const ParticipantOptions& options)
    : role_(options.rank.role), own_weights_(options.own_weights) {
  if (has_own_weights()) expect_role(Role::kTrainer, "lending weights of its own");
  const auto until = after(options.timeout);
  auto welcome = meet_rank(options, until);
  attach(std::move(welcome), until, options.timeout);
  for (const auto tag : kAllTags) {
    const auto got = welcome_.bytes.at(static_cast<size_t>(tag));
    const auto asked = options.bytes.at(static_cast<size_t>(tag));
    if (got >= asked) continue;
    throw runtime_error(fmt::format("rank {} gives {} of {}, and {} were asked for", welcome_.rank,
                                    format_bytes(got), tag_name(tag), format_bytes(asked)));
  }
}

Participant::~Participant() {
  try {
    for (const auto& memory : memory_) {
      if (memory) memory->unmap();
    }
    ToRank leave;
    leave.kind = ToRank::Kind::kDetach;
    if (link_ && !link_->is_lost()) link_->say(leave);
  } catch (const std::exception&) {
    // The rank sees that the connection has ended.
    return;
  }
}

/// The answer of the rank to which this engine says hello; nothing where none has come in time. One
/// that hangs up without a word was about to end: another may come in its place.
std::optional<Frame> Participant::meet_rank(const ParticipantOptions& options,
                                            Clock::time_point until) {
  ToRank hello;
  hello.kind = ToRank::Kind::kHello;
  hello.build = build_identity();
  hello.role = role_;
  hello.name = options.name;
  hello.bytes = options.bytes;
  hello.own_weights = own_weights_;
  const Deadline deadline(std::min(options.timeout, kLongestWait));
  bool told = false;
  while (true) {
    auto found = find_rank(options.rank, deadline);
    uuid_ = found.record.uuid;
    link_.emplace(std::move(found.socket), found.record, options.rank.job);
    try {
      link_->say(hello);
      if (auto answer = link_->receive(std::min(until, after(kQuiet)))) return answer;
      log::note(
          fmt::format("rank {} of the job at \"{}\" has not let this engine in yet: it waits for "
                      "engines of other ranks, or a command runs; awex-colocate status --job {} "
                      "tells which",
                      found.record.rank, options.rank.job, options.rank.job));
      return link_->receive(until);
    } catch (const Error&) {
      if (!link_->has_hung_up() || deadline.expired()) throw;
    }
    if (!std::exchange(told, true)) {
      log::note(fmt::format("rank {} of the job at \"{}\" has hung up: waiting for another",
                            found.record.rank, options.rank.job));
    }
    std::this_thread::sleep_for(kBetweenMeetings);
  }
}

void Participant::attach(std::optional<Frame> frame, Clock::time_point until, Seconds timeout) {
  if (frame) take_welcome(std::move(*frame));
  bool in_time = frame.has_value();
  while (in_time && !is_complete()) in_time = hear_request(until);
  if (!in_time) {
    throw Error(
        ExitCode::kDeadline,
        fmt::format("rank {} of the job at \"{}\" has not taken it in after {}: it may wait "
                    "for engines of other ranks",
                    link_->rank(), link_->job(), format_seconds(timeout.count())),
        fmt::format("awex-colocate status --job {} tells which", link_->job()));
  }
  const auto* weights = memory(Tag::kWeights);
  if (weights != nullptr && weights->has_content()) note_served();
}

void Participant::take_welcome(Frame frame) {
  const auto message = decode_to_engine(frame.text);
  if (message.kind == ToEngine::Kind::kRefused) throw Error(*message.error);
  if (message.kind == ToEngine::Kind::kEnd) link_->lose(reason_of(message));
  const size_t fds = message.kept_bytes > 0 ? 2 : 1;
  if (message.kind != ToEngine::Kind::kWelcome || frame.fds.size() != fds) {
    throw runtime_error("the rank's answer is no welcome", kOtherBuild);
  }
  welcome_ = message;
  version_ = message.version;
  page_.emplace(frame.fds[0]);
  number_ = (**page_).engine.load();
  if (fds > 1) kept_ = read_kept(frame.fds[1], message.kept_bytes);
  reserve_memory();
}

void Participant::reserve_memory() {
  device_ =
      welcome_.backend == "host" ? make_host_mapping_device() : make_cuda_mapping_device(uuid_);
  for (const auto tag : kAllTags) {
    const auto at = static_cast<size_t>(tag);
    if (const auto bytes = welcome_.bytes.at(at); bytes > 0) {
      memory_.at(at) =
          std::make_unique<TagMemory>(*device_, tag, bytes, welcome_.chunk_bytes.at(at));
    } else if (welcome_.mapped.at(at) || welcome_.away.at(at)) {
      throw runtime_error(fmt::format("the rank would map {} of no bytes", tag_name(tag)),
                          kOtherBuild);
    }
  }
}

bool Participant::is_complete() const {
  return std::all_of(kAllTags.begin(), kAllTags.end(), [&](Tag tag) {
    const auto at = static_cast<size_t>(tag);
    return (!welcome_.mapped.at(at) || memory(tag)->is_mapped()) &&
           (!welcome_.away.at(at) || memory(tag)->is_safe());
  });
}

std::byte* Participant::address(Tag tag) const {
  const auto* of_tag = memory(tag);
  return of_tag == nullptr ? nullptr : of_tag->data();
}

bool Participant::is_mapped(Tag tag) const {
  if (are_own(tag)) return !own_is_away_;
  const auto* of_tag = memory(tag);
  return of_tag != nullptr && of_tag->is_mapped();
}

std::shared_ptr<Arena> Participant::arena(Tag tag) const {
  const auto* of_tag = memory(tag);
  return of_tag == nullptr ? nullptr : of_tag->arena();
}

TagMemory& Participant::memory_told_of(Tag tag) const {
  auto* of_tag = memory(tag);
  if (of_tag != nullptr) return *of_tag;
  throw runtime_error(fmt::format("this engine has no {}", tag_name(tag)), kOtherBuild);
}

bool Participant::all_mapped() const {
  return !own_is_away_ && std::all_of(memory_.begin(), memory_.end(), [](const auto& of_tag) {
    return !of_tag || of_tag->is_mapped();
  });
}

bool Participant::has_weights() const {
  const auto& weights = memory_.at(static_cast<size_t>(Tag::kWeights));
  return !own_is_away_ && (!weights || weights->is_mapped());
}

bool Participant::none_mapped() const {
  return std::none_of(memory_.begin(), memory_.end(),
                      [](const auto& of_tag) { return of_tag && of_tag->is_mapped(); });
}

// ---- Declaring

void Participant::map_placeholder(Tag tag) {
  expect_role(Role::kInference, "awex_map_placeholder");
  const Call call(*this);
  if (seal_ != Seal::kOpen) {
    throw request_error("awex_map_placeholder: what this engine holds is sealed",
                        "from there on its memory is the job's, to give and to take");
  }
  auto* of_tag = memory(tag);
  if (of_tag == nullptr) {
    throw request_error(fmt::format("awex_map_placeholder: this engine has no {}", tag_name(tag)),
                        "ask for its bytes when attaching");
  }
  of_tag->map_placeholder();
}

void Participant::unmap_placeholders() {
  for (const auto& memory : memory_) {
    if (memory && memory->has_placeholder()) memory->unmap();
  }
}

void Participant::declare(Tag tag, const Parameter& parameter) {
  const Call call(*this);
  if (seal_ == Seal::kSealed) {
    throw cannot_declare(parameter, "what this engine holds is sealed");
  }
  if (seal_ == Seal::kPending) {
    throw cannot_declare(parameter, "awex_seal is still to be answered", "call awex_seal again");
  }
  if (are_own(tag)) {
    throw cannot_declare(parameter, "its weights are its own", "declare them by awex_declare_own");
  }
  const auto* of_tag = memory(tag);
  if (of_tag == nullptr) {
    throw cannot_declare(parameter, fmt::format("this engine has no {}", tag_name(tag)));
  }
  declaration_.add(tag, parameter, of_tag->bytes());
}

void Participant::declare_own(const Parameter& parameter) {
  if (!own_comes_back_) link_->expect_there();
  if (!has_own_weights()) {
    throw cannot_declare(parameter, "this engine's weights lie in the job's memory",
                         "say own_weights when it attaches, or declare them by awex_declare");
  }
  if (!own_comes_back_ && seal_ != Seal::kOpen) {
    throw cannot_declare(parameter, "what this engine holds is sealed",
                         "weights that move are declared anew in the callback after_resume");
  }
  declaration_.add_own(parameter, link_->is_lost() ? nullptr : device_.get());
}

/// Tells the rank what this engine lends; what it declares lies in that. Descriptors are taken for
/// one message at a time: there may be more of them than this process may have.
void Participant::lend() {
  ToRank message;
  message.kind = ToRank::Kind::kLend;
  message.declared.at(static_cast<size_t>(Tag::kWeights)) = declaration_.weights();
  std::vector<UniqueFd> owned;
  const auto say_blocks = [&] {
    std::vector<int> fds;
    for (const auto& fd : owned) fds.push_back(fd.get());
    link_->say(message, fds);
    owned.clear();
    message.begins = false;
    message.declared = {};
    message.blocks.clear();
  };
  declaration_.lend_weights(*device_, [&](Lending lending) {
    if (message.blocks.size() == kMostFds) say_blocks();
    message.blocks.push_back(lending.block);
    if (lending.block.has_fd) owned.push_back(std::move(lending.fd));
  });
  say_blocks();
}

/// What was declared and cannot be lent is to be declared anew.
void Participant::lend_anew() {
  try {
    lend();
  } catch (const Error&) {
    declaration_.begin_anew();
    throw;
  }
}

/// The engine's callback brings its own memory back, and may declare it at other places.
void Participant::call_own_back() {
  declaration_.begin_weights_anew();
  own_comes_back_ = true;
  try {
    call_back(callbacks_.after_resume, "after_resume", Tag::kWeights);
  } catch (...) {
    declaration_.keep();
    own_comes_back_ = false;
    throw;
  }
  own_comes_back_ = own_is_away_ = false;
}

void Participant::bring_back_own() {
  call_own_back();
  declaration_.keep();  // Where nothing was declared, all lies where it was.
  lend();
}

void Participant::seal(Seconds timeout) {
  const Call call(*this);
  if (seal_ == Seal::kSealed) {
    throw request_error("what this engine holds is sealed already",
                        "declare everything first, and seal once");
  }
  if (own_weights_ == OwnWeights::kMoves &&
      !(callbacks_.before_release && callbacks_.after_resume)) {
    throw request_error(
        "weights that the engine moves itself need the callbacks before_release "
        "and after_resume",
        "set them before awex_seal, or attach with weights that stay");
  }
  if (seal_ == Seal::kOpen) {
    unmap_placeholders();
    if (has_own_weights()) lend_anew();
    ToRank message;
    message.kind = ToRank::Kind::kSeal;
    message.declared = declaration_.tensors();
    link_->say(message);
    seal_ = Seal::kPending;
  }
  const auto until = after(timeout);
  if (hear_of_seal(std::min(until, after(kQuiet)))) return;
  if (Clock::now() < until) {
    log::note(
        fmt::format("rank {} of the job at \"{}\" has not answered what was declared yet: it waits "
                    "for engines of other ranks to declare theirs; awex-colocate status --job {} "
                    "tells which",
                    welcome_.rank, link_->job(), link_->job()));
    if (hear_of_seal(until)) return;
  }
  throw Error(ExitCode::kDeadline,
              fmt::format("rank {} has not answered what was declared after {}: it may wait for "
                          "engines of other ranks to declare theirs",
                          welcome_.rank, format_seconds(timeout.count())),
              fmt::format("call awex_seal again to wait on; awex-colocate status --job {} tells "
                          "which",
                          link_->job()));
}

/// Whether the rank has taken what was declared. Throws what it says against it.
bool Participant::hear_of_seal(Clock::time_point until) {
  while (const auto answer = hear(until)) {  // maybe an end of a command that came before
    if (answer->kind == ToEngine::Kind::kRefused) {
      seal_ = Seal::kOpen;
      declaration_.begin_anew();
      throw Error(*answer->error);
    }
    if (answer->kind != ToEngine::Kind::kSealed) continue;
    seal_ = Seal::kSealed;
    return true;
  }
  return false;
}

// ---- Taking part in commands

void Participant::expect_role(Role role, const char* call) const {
  if (role_ == role) return;
  throw request_error(fmt::format("{} is a call of {} engines, and this one is {}", call,
                                  role_name(role), role_name(role_)),
                      role == Role::kTrainer ? "inference calls awex_wait and awex_release"
                                             : "a trainer calls awex_hand_over and awex_take_back");
}

void Participant::expect_sealed(const char* call) const {
  link_->expect_there();
  if (seal_ == Seal::kSealed) return;
  throw request_error(fmt::format("{} before awex_seal", call),
                      "declare the engine's tensors and seal them first");
}

/// What a step that failed has half written must not be handed over as whole.
void Participant::expect_whole(const char* call) const {
  if (role_ != Role::kTrainer || (**page_).writing.load() == 0) return;
  throw request_error(
      fmt::format("{}: this engine is writing: awex_writing without awex_consistent after it",
                  call),
      "a step that failed in between may have written half of it: do it again from whole weights, "
      "or start the trainer anew");
}

uint64_t Participant::hand_over(Seconds timeout) {
  expect_role(Role::kTrainer, "awex_hand_over");
  const auto over = take_part("awex_hand_over", EngineWish::kHandOver, 0, timeout,
                              [](const ToEngine& end) { return end.gave; });
  return over.version;
}

void Participant::take_back(Seconds timeout) {
  bring_back("awex_take_back", EngineWish::kTakeBack, timeout, &Participant::all_mapped);
}

void Participant::take_back_weights(Seconds timeout) {
  bring_back("awex_take_back_weights", EngineWish::kTakeBackWeights, timeout,
             &Participant::has_weights);
}

/// A command that brings less than what the call is for does not end it. Where memory is the
/// engine's own and stays, it is inference's that has to go.
void Participant::bring_back(const char* name, EngineWish wish, Seconds timeout,
                             bool (Participant::*is_there)() const) {
  expect_role(Role::kTrainer, name);
  expect_sealed(name);
  if ((this->*is_there)() && !is_handed_over_) return;
  static_cast<void>(take_part(name, wish, 0, timeout, [&](const ToEngine& end) {
    return end.brought && (end.error || (this->*is_there)());
  }));
}

uint64_t Participant::wait(uint64_t newer_than, Seconds timeout) {
  expect_role(Role::kInference, "awex_wait");
  expect_sealed("awex_wait");
  const auto serves = [&] { return served_ > newer_than; };
  if (serves()) return served_;
  static_cast<void>(take_part("awex_wait", EngineWish::kNone, newer_than, timeout,
                              [&](const ToEngine& /*end*/) { return serves(); }));
  return served_;
}

void Participant::release(Seconds timeout) {
  expect_role(Role::kInference, "awex_release");
  expect_sealed("awex_release");
  if (none_mapped() || !welcome_.takes_memory) return;
  static_cast<void>(take_part("awex_release", EngineWish::kNone, 0, timeout,
                              [](const ToEngine& end) { return end.gave; }));
}

void Participant::ready(Seconds timeout) {
  static_cast<void>(
      take_part("awex_ready", EngineWish::kNone, 0, timeout, [](const ToEngine&) { return true; }));
}

/// Consents to commands, one after the other, until one is what the call is for.
ToEngine Participant::take_part(const char* name, EngineWish wish, uint64_t newer_than,
                                Seconds timeout, const IsDone& is_done) {
  expect_sealed(name);
  expect_whole(name);
  const Call call(*this);
  const auto until = after(timeout);
  hear_what_came();
  std::optional<Error> last;
  while (true) {
    ToRank message;
    message.kind = ToRank::Kind::kReady;
    message.wish = wish;
    message.newer_than = newer_than;
    link_->say(message);
    const auto over = await_over(until);
    if (over && is_done(*over)) {
      if (over->error) throw Error(*over->error);
      return *over;
    }
    if (over && over->error) last = over->error;
    if (!over || Clock::now() >= until) throw not_done(name, timeout, last);
  }
}

/// The end of the command that uses this consent; nothing when the consent came back in time.
std::optional<ToEngine> Participant::await_over(Clock::time_point until) {
  bool withdrawing = false;
  while (true) {
    auto message = withdrawing ? hear_of_withdrawal() : hear(until);
    if (!message) {
      ToRank withdraw;
      withdraw.kind = ToRank::Kind::kWithdraw;
      link_->say(withdraw);
      withdrawing = true;
    } else if (message->kind == ToEngine::Kind::kOver) {
      return message;
    } else if (withdrawing && message->kind == ToEngine::Kind::kWithdrawn) {
      return std::nullopt;
    }
  }
}

/// A rank answers at once, or when the command that uses the consent is over, which its own
/// deadlines bound; unless it is stopped.
std::optional<ToEngine> Participant::hear_of_withdrawal() {
  std::optional<Deadline> stopped;
  while (true) {
    if (auto message = hear(after(kSleep))) return message;
    if (!link_->is_stopped()) {
      stopped.reset();
    } else if (!stopped) {
      stopped.emplace(kLongestStop);
    } else if (stopped->expired()) {
      link_->lose_stopped();  // It must not use the consent when it goes on.
    }
  }
}

// ---- What the rank says

/// Hears one message that must be a request; false when none comes in time.
bool Participant::hear_request(Clock::time_point until) {
  auto frame = link_->receive(until);
  if (!frame) return false;
  if (!take(*frame)) return true;
  link_->lose(runtime_error("it says what does not belong to attaching", kOtherBuild));
}

std::optional<ToEngine> Participant::hear(Clock::time_point until) {
  while (auto frame = link_->receive(until)) {
    if (auto message = take(*frame)) return message;
  }
  return std::nullopt;
}

void Participant::hear_what_came() {
  while (hear(Clock::now())) {  // ends of commands that went without this engine
  }
}

/// The message, if it is no request.
std::optional<ToEngine> Participant::take(Frame& frame) {
  ToEngine message;
  try {
    message = decode_to_engine(frame.text);
  } catch (const Error& error) {
    link_->lose(error);
  }
  if (serve(message, frame.fds)) return std::nullopt;
  if (message.kind == ToEngine::Kind::kEnd) link_->lose(reason_of(message));
  if (message.kind == ToEngine::Kind::kOver) {
    version_ = message.version;
    if (!message.error) note_served();
    if (!message.error && message.gave)
      is_handed_over_ = has_own_weights() && welcome_.takes_memory;
    if (!message.error && message.brought) is_handed_over_ = false;
  }
  return message;
}

/// Where all memory is here, the weights are those of the version, for all that the job says.
void Participant::note_served() {
  if (all_mapped()) served_ = version_;
}

/// Does what the rank asks for, and answers; false where it asks for nothing.
bool Participant::serve(const ToEngine& message, std::vector<UniqueFd>& fds) {
  ToRank answer;
  answer.kind = ToRank::Kind::kAck;
  try {
    switch (message.kind) {
      case ToEngine::Kind::kMap:
        map(message, std::move(fds));
        break;
      case ToEngine::Kind::kRelease:
        release(message.tag);
        break;
      case ToEngine::Kind::kCopied:
        note_copied(message, std::move(fds));
        break;
      case ToEngine::Kind::kChanged:
        version_ = message.version;
        call_back(callbacks_.weights_changed, "weights_changed", message.tag);
        break;
      default:
        return false;
    }
  } catch (const Error& error) {
    answer.error = error;
  } catch (const std::exception& error) {
    answer.error = runtime_error(error.what());
  }
  link_->say(answer);
  return true;
}

void Participant::map(const ToEngine& message, std::vector<UniqueFd> fds) {
  if (are_own(message.tag)) return bring_back_own();
  auto& of_tag = memory_told_of(message.tag);
  of_tag.map(message.first, std::move(fds), message.last, message.has_content);
  if (message.last) call_back(callbacks_.after_resume, "after_resume", message.tag);
}

void Participant::release(Tag tag) {
  served_ = 0;
  if (is_mapped(tag)) call_back(callbacks_.before_release, "before_release", tag);
  if (are_own(tag)) own_is_away_ = true;
  auto* of_tag = memory(tag);
  // The rank copies a trainer's first: until then the bytes are here as well.
  if (of_tag != nullptr && role_ == Role::kTrainer) of_tag->leave();
  expect_rank();  // The callback may have taken its time.
  if (of_tag != nullptr && role_ == Role::kInference) of_tag->unmap();
}

/// Nobody takes what is given up for a rank that has gone, and it may not be had again.
void Participant::expect_rank() {
  if (link_->has_ended()) link_->lose({ExitCode::kPeerLost, "the other end has gone"});
}

void Participant::note_copied(const ToEngine& message, std::vector<UniqueFd> fds) {
  auto& of_tag = memory_told_of(message.tag);
  expect_rank();
  of_tag.let_go(message.first, std::move(fds), message.holds);
}

void Participant::call_back(const EngineCallback& callback, const char* what, Tag tag) const {
  if (!callback) return;
  const auto fail = [&](const std::string& how) {
    return runtime_error(
        fmt::format("the engine's callback {} has failed for {}: it {}", what, tag_name(tag), how),
        "see the engine's own log");
  };
  int answer = 0;
  try {
    answer = callback(tag, version_);
  } catch (...) {
    throw fail("threw");  // whatever that is, it must not go through the rank's request
  }
  if (answer != 0) throw fail(fmt::format("returned {}", answer));
}

// ---- Without the rank

/// Whether the rank is there still, it has not been asked since the last call.
void Participant::note_loss() {
  if (link_->is_lost()) return;
  try {
    hear_what_came();
  } catch (const Error& error) {
    if (!link_->is_lost()) throw;
  }
}

bool Participant::restore() {
  expect_role(Role::kTrainer, "awex_restore");
  const Call call(*this, /*needs_rank=*/false);
  note_loss();
  if (!link_->is_lost()) {
    throw request_error(fmt::format("rank {} of the job is there: awex_restore is for one that is "
                                    "lost",
                                    welcome_.rank),
                        "awex_take_back brings the memory back");
  }
  link_->expect_gone();
  expect_no_other();
  for (const auto tag : kAllTags) restore(tag);
  if (own_is_away_) call_own_back();
  return std::all_of(memory_.begin(), memory_.end(),
                     [](const auto& of_tag) { return !of_tag || of_tag->is_proven(); });
}

/// What is mapped here may have become another's, with newer bytes.
void Participant::expect_no_other() const {
  if ((**page_).engine.load() == number_) return;
  throw request_error(
      fmt::format("another engine has attached to rank {} in this one's place since "
                  "it was lost: the memory was that one's",
                  welcome_.rank),
      "restore that one, and detach this one");
}

void Participant::restore(Tag tag) {
  auto* of_tag = memory(tag);
  if (of_tag == nullptr) return;
  auto& untold = untold_.at(static_cast<size_t>(tag));
  if (!of_tag->is_mapped()) {
    of_tag->restore();
    untold = true;
  }
  if (untold) call_back(callbacks_.after_resume, "after_resume", tag);
  untold = false;
}

void Participant::check() {
  if (in_call_) return;  // That call hears of a loss itself.
  const Call call(*this);
  if (link_->has_ended()) hear_what_came();
}

// ---- Around steps

void Participant::begin_writing() {
  expect_role(Role::kTrainer, "awex_writing");
  link_->expect_there();
  if (!all_mapped()) {
    throw request_error("awex_writing while some of the trainer's memory is away",
                        "take it back first: awex_take_back brings all of it");
  }
  (**page_).writing.store(1);
}

void Participant::end_writing() {
  expect_role(Role::kTrainer, "awex_consistent");
  link_->expect_there();
  auto& page = **page_;
  if (page.writing.load() == 0) {
    throw request_error("awex_consistent without awex_writing before it");
  }
  page.steps.fetch_add(1);
  page.writing.store(0);
}

void Participant::book(const std::string& what, uint64_t bytes) {
  link_->expect_there();
  booked_.insert(what);
  if (booked_.size() > kMostBooked) {
    throw request_error(fmt::format("an engine tells of {} kinds of memory at most", kMostBooked));
  }
  ToRank message;
  message.kind = ToRank::Kind::kBook;
  message.name = what;
  message.booked_bytes = bytes;
  link_->say(message);
}

void Participant::keep(std::string bytes) {
  expect_role(Role::kTrainer, "awex_keep");
  const Call call(*this);
  if (bytes.size() > kMostKeptBytes) {
    throw request_error(fmt::format("{} are too much to keep: {} are the most",
                                    format_bytes(bytes.size()), format_bytes(kMostKeptBytes)));
  }
  const auto file = file_of(bytes);
  ToRank message;
  message.kind = ToRank::Kind::kKeep;
  message.kept_bytes = bytes.size();
  const int fd = file.get();
  link_->say(message, {&fd, 1});
  kept_ = std::move(bytes);
}

}  // namespace awex::attach
