#include "attach/library/participant.hpp"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "base/build_identity.hpp"
#include "base/checked.hpp"
#include "base/error.hpp"
#include "base/node_identity.hpp"
#include "base/process_activity.hpp"
#include "base/whole_file.hpp"
#include "model/json_input.hpp"

namespace awex::attach {
namespace {

using Clock = std::chrono::steady_clock;

/// How long a rank may take to read a message: its door has a thread of its own.
constexpr Seconds kSlowestReader{60};
/// Times that are longer end nothing.
constexpr Seconds kLongestWait{1e8};
constexpr Seconds kSleep{1};
/// How long a stopped rank may keep a call whose time is over; a debugger stops it for less.
constexpr Seconds kLongestStop{3};

constexpr const char* kOtherBuild =
    "the engine must load the libawex_colocate.so of the awex-colocate that the job runs";

Clock::time_point after(Seconds time) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::min(time, kLongestWait));
}

uint64_t size_of(const UniqueFd& fd, const char* what) {
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0)
    throw errno_error(fmt::format("take {}", what), "fstat", errno);
  return static_cast<uint64_t>(status.st_size);
}

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

}  // namespace

MappedPage::MappedPage(const UniqueFd& fd) {
  if (size_of(fd, "the control page") < sizeof(ControlPage)) {
    throw runtime_error("the rank's control page is too short", kOtherBuild);
  }
  void* data =
      ::mmap(nullptr, sizeof(ControlPage), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) throw errno_error("map the control page", "mmap", errno);
  page_ = static_cast<ControlPage*>(data);
  if (page_->magic == ControlPage::kMagic) return;
  ::munmap(data, sizeof(ControlPage));
  throw runtime_error("the rank's control page is none", kOtherBuild);
}

MappedPage::~MappedPage() { ::munmap(page_, sizeof(ControlPage)); }

/// Marks that a call waits: callbacks must not begin another one. Most calls need the rank.
class Participant::Call {
 public:
  explicit Call(Participant& participant, bool needs_rank = true) : participant_(participant) {
    if (needs_rank && participant_.lost_) throw Error(*participant_.lost_);
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
    : role_(options.rank.role), job_(options.rank.job), own_weights_(options.own_weights) {
  if (has_own_weights()) expect_role(Role::kTrainer, "lending weights of its own");
  const Stopwatch watch;
  const Deadline deadline(std::min(options.timeout, kLongestWait));
  auto found = find_rank(options.rank, deadline);
  uuid_ = found.record.uuid;
  rank_pid_ = found.record.pid;
  if (found.record.pid_namespace == own_pid_namespace()) {
    const auto rank = read_process_stat(fmt::format("/proc/{}/stat", rank_pid_));
    if (rank) rank_start_ = rank->start_time;
  }
  channel_ = std::make_unique<Channel>(std::move(found.socket));
  ToRank hello;
  hello.kind = ToRank::Kind::kHello;
  hello.build = build_identity();
  hello.role = role_;
  hello.name = options.name;
  hello.bytes = options.bytes;
  hello.own_weights = own_weights_;
  say(hello);
  attach(Seconds(std::max(0.0, deadline.allowed().count() - watch.seconds())));
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
    for (auto& of_tag : memory_) {
      if (of_tag.chunks) unmap(of_tag);
    }
    ToRank leave;
    leave.kind = ToRank::Kind::kDetach;
    if (channel_ && !lost_) say(leave);
  } catch (const std::exception&) {
    // The rank sees that the connection has ended.
    return;
  }
}

void Participant::attach(Seconds timeout) {
  const auto until = after(timeout);
  auto frame = receive(until);
  if (frame) take_welcome(std::move(*frame));
  const auto wanted = [&] {
    return std::any_of(kAllTags.begin(), kAllTags.end(), [&](Tag tag) {
      const auto at = static_cast<size_t>(tag);
      return (welcome_.mapped.at(at) && !memory(tag).mapped) ||
             (welcome_.copied.at(at) && !memory(tag).copy.is_whole());
    });
  };
  bool in_time = frame.has_value();
  while (in_time && wanted()) in_time = hear_request(until);
  if (in_time) {
    if (memory(Tag::kWeights).has_content) note_served();
    return;
  }
  throw Error(ExitCode::kDeadline,
              fmt::format("the rank of this engine has not taken it in after {}: the job may wait "
                          "for engines of other ranks",
                          format_seconds(timeout.count())),
              "awex-colocate status --job DIR tells whom it waits for");
}

void Participant::take_welcome(Frame frame) {
  const auto message = decode_to_engine(frame.text);
  if (message.kind == ToEngine::Kind::kRefused) throw Error(*message.error);
  if (message.kind == ToEngine::Kind::kEnd) {
    lose(message.error ? *message.error : Error(ExitCode::kPeerLost, "it was ended in order"));
  }
  const size_t fds = message.kept_bytes > 0 ? 2 : 1;
  if (message.kind != ToEngine::Kind::kWelcome || frame.fds.size() != fds) {
    throw runtime_error("the rank's answer is no welcome", kOtherBuild);
  }
  welcome_ = message;
  version_ = message.version;
  page_ = std::make_unique<MappedPage>(frame.fds[0]);
  if (fds > 1) kept_ = read_kept(frame.fds[1], message.kept_bytes);
  reserve_memory();
}

void Participant::reserve_memory() {
  device_ =
      welcome_.backend == "host" ? make_host_mapping_device() : make_cuda_mapping_device(uuid_);
  for (const auto tag : kAllTags) {
    const auto bytes = welcome_.bytes.at(static_cast<size_t>(tag));
    const auto chunk_bytes = welcome_.chunk_bytes.at(static_cast<size_t>(tag));
    if (bytes == 0) {
      const auto at = static_cast<size_t>(tag);
      if (!welcome_.mapped.at(at) && !welcome_.copied.at(at)) continue;
      throw runtime_error(fmt::format("the rank would map {} of no bytes", tag_name(tag)),
                          kOtherBuild);
    }
    if (chunk_bytes == 0 || ceil_div(bytes, chunk_bytes) > kMaxChunks || bytes > UINT64_MAX / 2 ||
        chunk_bytes > UINT64_MAX / 2) {
      throw runtime_error(fmt::format("the rank's {} of {} bytes in chunks of {} cannot be",
                                      tag_name(tag), bytes, chunk_bytes),
                          kOtherBuild);
    }
    auto& of_tag = memory(tag);
    of_tag.chunks = device_->reserve(tag_name(tag), bytes, chunk_bytes);
    of_tag.arena = std::make_shared<Arena>(tag_name(tag), of_tag.chunks->data(), bytes);
  }
}

std::byte* Participant::address(Tag tag) const {
  const auto& chunks = memory(tag).chunks;
  return chunks ? chunks->data() : nullptr;
}

bool Participant::is_mapped(Tag tag) const {
  if (tag == Tag::kWeights && has_own_weights()) return !own_is_away_;
  return memory(tag).mapped;
}

std::shared_ptr<Arena> Participant::arena(Tag tag) const { return memory(tag).arena; }

bool Participant::all_mapped() const {
  return !own_is_away_ && std::all_of(memory_.begin(), memory_.end(), [](const Memory& of_tag) {
    return !of_tag.chunks || of_tag.mapped;
  });
}

bool Participant::none_mapped() const {
  return std::none_of(memory_.begin(), memory_.end(),
                      [](const Memory& of_tag) { return of_tag.mapped; });
}

// ---- Declaring

void Participant::declare(Tag tag, const Parameter& parameter) {
  const Call call(*this);
  const auto refuse = [&](const std::string& why, const std::string& hint = {}) {
    return request_error(fmt::format("cannot declare {}: {}", in_quotes(parameter.name), why), hint)
        .about_tensor(parameter.name);
  };
  if (sealed_) throw refuse("what this engine holds is sealed");
  if (seal_pending_) throw refuse("awex_seal is still to be answered", "call awex_seal again");
  const auto bytes = welcome_.bytes.at(static_cast<size_t>(tag));
  if (tag == Tag::kWeights && has_own_weights()) {
    throw refuse("its weights are its own", "declare them by awex_declare_own");
  }
  if (bytes == 0) throw refuse(fmt::format("this engine has no {}", tag_name(tag)));
  const auto element = element_bytes(parameter.dtype);
  const auto size =
      checked_mul(checked_mul(parameter.rows, parameter.cols, "a tensor"), element, "a tensor");
  const auto end = checked_add(parameter.offset_bytes, size, "a tensor's end");
  if (parameter.offset_bytes % element != 0) {
    throw refuse(fmt::format("offset {} is no multiple of its element's {} bytes",
                             parameter.offset_bytes, element));
  }
  if (end > bytes) {
    throw refuse(fmt::format("it ends at byte {}, and {} has {}", end, tag_name(tag), bytes));
  }
  begin_list();
  add(tag, parameter);
}

/// A first declaration after a seal, or when lent memory has come back, begins a new list.
void Participant::begin_list() {
  if (!std::exchange(begins_declaring_, false)) return;
  const auto weights = static_cast<size_t>(Tag::kWeights);
  if (!sealed_) {
    declared_ = {};
    names_ = {};
  }
  declared_.at(weights).clear();
  names_.at(weights).clear();
  lends_.clear();
}

void Participant::add(Tag tag, const Parameter& parameter) {
  if (!names_.at(static_cast<size_t>(tag)).insert(parameter.name).second) {
    throw request_error(fmt::format("cannot declare {}: {} has it already",
                                    in_quotes(parameter.name), tag_name(tag)),
                        "a tensor is declared once; awex_seal begins a new list")
        .about_tensor(parameter.name);
  }
  declared_.at(static_cast<size_t>(tag)).push_back(parameter);
}

// ---- Lending

void Participant::declare_own(const Parameter& parameter) {
  const auto refuse = [&](const std::string& why, const std::string& hint = {}) {
    return request_error(fmt::format("cannot declare {}: {}", in_quotes(parameter.name), why), hint)
        .about_tensor(parameter.name);
  };
  if (lost_ && !may_declare_) throw Error(*lost_);
  if (!has_own_weights()) {
    throw refuse("this engine's weights lie in the job's memory",
                 "say own_weights when it attaches, or declare them by awex_declare");
  }
  if (!may_declare_ && (sealed_ || seal_pending_)) {
    throw refuse("what this engine holds is sealed",
                 "weights that move are declared anew in the callback after_resume");
  }
  if (parameter.offset_bytes % element_bytes(parameter.dtype) != 0) {
    throw refuse(
        fmt::format("its address {:#x} is no multiple of its element", parameter.offset_bytes));
  }
  begin_list();
  try {
    if (!lost_) find_blocks(parameter);  // else there is nobody to lend to
  } catch (const Error& error) {
    throw refuse(error.what(), error.hint());
  }
  add(Tag::kWeights, parameter);
}

/// The blocks that a tensor lies in, of which others may be known already.
void Participant::find_blocks(const Parameter& parameter) {
  const auto elements = checked_mul(parameter.rows, parameter.cols, "a tensor");
  const auto bytes = checked_mul(elements, element_bytes(parameter.dtype), "a tensor");
  const uint64_t end = checked_add(parameter.offset_bytes, bytes, "a tensor's end");
  for (uint64_t at = parameter.offset_bytes; at < end;) {
    auto after = lends_.upper_bound(at);
    if (after == lends_.begin() ||
        at - std::prev(after)->first >= std::prev(after)->second.block.bytes) {
      auto lending = device_->lend(std::bit_cast<const std::byte*>(at));
      const auto& block = lending.block;
      if (at < block.address || at - block.address >= block.bytes) {
        throw runtime_error(fmt::format("{} at {:#x} are no block that holds {:#x}",
                                        format_bytes(block.bytes), block.address, at));
      }
      after = std::next(lends_.insert_or_assign(block.address, std::move(lending)).first);
    }
    const auto& block = std::prev(after)->second.block;
    at = block.address + block.bytes;
  }
}

/// Tells the rank what this engine lends; what it declares lies in that.
void Participant::lend() {
  if (lends_.size() > kMostLentBlocks) {
    throw request_error(fmt::format("the weights lie in {} blocks of memory, and {} are the most",
                                    lends_.size(), kMostLentBlocks),
                        "let a job that is started anew have them (adopt)");
  }
  auto next = lends_.begin();
  bool begins = true;
  while (begins || next != lends_.end()) {
    ToRank message;
    message.kind = ToRank::Kind::kLend;
    message.begins = begins;
    if (begins) {
      const auto weights = static_cast<size_t>(Tag::kWeights);
      message.declared.at(weights) = declared_.at(weights);
    }
    std::vector<int> fds;
    for (; next != lends_.end() && message.blocks.size() < kMostFds; ++next) {
      message.blocks.push_back(next->second.block);
      if (next->second.block.has_fd) fds.push_back(next->second.fd.get());
    }
    say(message, fds);
    begins = false;
  }
  lends_.clear();  // The rank has the descriptors now.
}

/// The engine's callback brings its own memory back, and may declare it at other places.
void Participant::call_own_back() {
  begins_declaring_ = may_declare_ = true;
  try {
    call_back(callbacks_.after_resume, "after_resume", Tag::kWeights);
  } catch (...) {
    begins_declaring_ = may_declare_ = false;
    throw;
  }
  may_declare_ = own_is_away_ = false;
}

void Participant::bring_back_own() {
  call_own_back();
  if (std::exchange(begins_declaring_, false)) {  // Nothing was: all lies where it was.
    for (const auto& tensor : declared_.at(static_cast<size_t>(Tag::kWeights))) {
      find_blocks(tensor);
    }
  }
  lend();
}

void Participant::seal(Seconds timeout) {
  const Call call(*this);
  if (sealed_) throw request_error("what this engine holds is sealed already");
  if (own_weights_ == OwnWeights::kMoves &&
      !(callbacks_.before_release && callbacks_.after_resume)) {
    throw request_error(
        "weights that the engine moves itself need the callbacks before_release "
        "and after_resume",
        "set them before awex_seal, or attach with weights that stay");
  }
  if (!seal_pending_) {
    if (has_own_weights()) lend();
    ToRank message;
    message.kind = ToRank::Kind::kSeal;
    message.declared = declared_;
    say(message);
    seal_pending_ = true;
  }
  begins_declaring_ = true;
  const auto until = after(timeout);
  while (const auto answer = hear(until)) {
    if (answer->kind == ToEngine::Kind::kSealed) sealed_ = true;
    const bool refused = answer->kind == ToEngine::Kind::kRefused;
    if (!sealed_ && !refused) continue;  // an end of a command that came before
    seal_pending_ = false;
    if (refused) throw Error(*answer->error);
    return;
  }
  throw Error(ExitCode::kDeadline,
              fmt::format("rank {} has not answered what was declared after {}", welcome_.rank,
                          format_seconds(timeout.count())),
              "call awex_seal again to wait on; awex-colocate status --job DIR tells what it does");
}

// ---- Taking part in commands

void Participant::expect_role(Role role, const char* call) const {
  if (role_ == role) return;
  throw request_error(fmt::format("{} is a call of {} engines, and this one is {}", call,
                                  role_name(role), role_name(role_)));
}

void Participant::expect_sealed(const char* call) const {
  if (lost_) throw Error(*lost_);
  if (sealed_) return;
  throw request_error(fmt::format("{} before awex_seal", call),
                      "declare the engine's tensors and seal them first");
}

uint64_t Participant::hand_over(Seconds timeout) {
  expect_role(Role::kTrainer, "awex_hand_over");
  const auto over = take_part("awex_hand_over", EngineWish::kHandOver, 0, timeout,
                              [](const ToEngine& end) { return end.gave; });
  return over.version;
}

void Participant::take_back(Seconds timeout) {
  expect_role(Role::kTrainer, "awex_take_back");
  expect_sealed("awex_take_back");
  if (all_mapped()) return;
  static_cast<void>(take_part("awex_take_back", EngineWish::kTakeBack, 0, timeout,
                              [](const ToEngine& end) { return end.brought; }));
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
  const Call call(*this);
  const auto until = after(timeout);
  // What came while the engine was in no call: ends of commands that went without it.
  while (hear(Clock::now())) {
  }
  std::optional<Error> last;
  while (true) {
    ToRank message;
    message.kind = ToRank::Kind::kReady;
    message.wish = wish;
    message.newer_than = newer_than;
    say(message);
    const auto over = await_over(until);
    if (over && is_done(*over)) {
      if (over->error) throw Error(*over->error);
      return *over;
    }
    if (over && over->error) last = over->error;
    if (!over || Clock::now() >= until) throw deadline_error(name, timeout, last);
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
      say(withdraw);
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
    if (!is_stopped(rank_pid_)) {
      stopped.reset();
      continue;
    }
    if (!stopped) stopped.emplace(kLongestStop);
    if (!stopped->expired()) continue;
    // It must not use the consent when it goes on.
    channel_.reset();
    lose({ExitCode::kDeadline, fmt::format("its process {} is stopped", rank_pid_)});
  }
}

Error Participant::deadline_error(const char* call, Seconds timeout,
                                  const std::optional<Error>& last) const {
  const auto failure = last ? fmt::format("; the last one failed: {}", last->what()) : "";
  return {ExitCode::kDeadline,
          fmt::format("{}: no command of the job has done it after {}{}", call,
                      format_seconds(timeout.count()), failure),
          "awex-colocate status --job DIR tells what the job waits for"};
}

// ---- What the rank says

std::optional<Frame> Participant::receive(Clock::time_point until) {
  try {
    while (true) {
      if (auto frame = channel_->receive()) return frame;
      const auto now = Clock::now();
      if (now >= until) return std::nullopt;
      channel_->wait_readable(std::min<Seconds>(until - now, kSleep));
    }
  } catch (const Error& error) {
    lose(error);
  }
}

/// Hears one message that must be a request; false when none comes in time.
bool Participant::hear_request(Clock::time_point until) {
  auto frame = receive(until);
  if (!frame) return false;
  if (!take(*frame)) return true;
  lose(runtime_error("it says what does not belong to attaching", kOtherBuild));
}

std::optional<ToEngine> Participant::hear(Clock::time_point until) {
  while (auto frame = receive(until)) {
    if (auto message = take(*frame)) return message;
  }
  return std::nullopt;
}

/// The message, if it is no request.
std::optional<ToEngine> Participant::take(Frame& frame) {
  ToEngine message;
  try {
    message = decode_to_engine(frame.text);
  } catch (const Error& error) {
    lose(error);
  }
  if (serve(message, frame.fds)) return std::nullopt;
  if (message.kind == ToEngine::Kind::kEnd) {
    lose(message.error ? *message.error : Error(ExitCode::kPeerLost, "it was ended in order"));
  }
  if (message.kind == ToEngine::Kind::kOver) {
    version_ = message.version;
    if (!message.error) note_served();
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
  say(answer);
  return true;
}

void Participant::map(const ToEngine& message, std::vector<UniqueFd> fds) {
  auto& of_tag = memory(message.tag);
  const auto what = tag_name(message.tag);
  if (message.tag == Tag::kWeights && has_own_weights()) return bring_back_own();
  if (!of_tag.chunks) throw runtime_error(fmt::format("this engine has no {}", what), kOtherBuild);
  const uint64_t all = of_tag.chunks->chunking().count();
  const uint64_t count = fds.size();
  const bool in_order = !of_tag.mapped && message.first == of_tag.come && count > 0 &&
                        count <= all - of_tag.come && message.last == (of_tag.come + count == all);
  if (!in_order) {
    throw runtime_error(fmt::format("cannot map {} chunks of {} from chunk {} of {} on: {} are "
                                    "mapped",
                                    count, what, message.first, all, of_tag.come),
                        kOtherBuild);
  }
  try {
    of_tag.chunks->map(of_tag.come, std::move(fds));
  } catch (...) {
    unmap(of_tag);
    throw;
  }
  of_tag.come += count;
  if (!message.last) return;
  of_tag.mapped = true;
  of_tag.has_content = message.has_content;
  of_tag.arena->set_mapped(true);
  call_back(callbacks_.after_resume, "after_resume", message.tag);
}

void Participant::release(Tag tag) {
  auto& of_tag = memory(tag);
  served_ = 0;
  const bool is_own = tag == Tag::kWeights && has_own_weights();
  const bool is_here = is_own ? !own_is_away_ : of_tag.mapped;
  if (is_here) call_back(callbacks_.before_release, "before_release", tag);
  if (is_own) own_is_away_ = true;
  // The callback may have taken its time: nobody would take what is given up then.
  if (channel_->has_ended()) lose({ExitCode::kPeerLost, "the other end has gone"});
  of_tag.copy.forget();
  if (of_tag.chunks) unmap(of_tag);
}

void Participant::note_copied(const ToEngine& message, std::vector<UniqueFd> fds) {
  auto& of_tag = memory(message.tag);
  if (!of_tag.chunks) {
    throw runtime_error(fmt::format("this engine has no {}", tag_name(message.tag)), kOtherBuild);
  }
  if (!fds.empty()) {
    of_tag.copy.add(message.first, std::move(fds), of_tag.chunks->chunking().count());
  }
  if (message.last) of_tag.copy.complete(message.runs);
}

void Participant::unmap(Memory& of_tag) const {
  of_tag.arena->set_mapped(false);
  of_tag.chunks->unmap();
  of_tag.restored.reset();
  of_tag.mapped = false;
  of_tag.come = 0;
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

void Participant::say(const ToRank& message, std::span<const int> fds) {
  NoMonitor monitor;
  try {
    channel_->send(encode(message), fds, Deadline(kSlowestReader), monitor);
  } catch (const Error& error) {
    lose(error);
  }
}

/// The connection is of no use any more.
void Participant::lose(const Error& error) {
  const auto rank = page_ ? fmt::format("rank {}", welcome_.rank) : std::string("the rank");
  lost_.emplace(ExitCode::kPeerLost,
                fmt::format("{} of the job at \"{}\" is lost: {}", rank, job_, error.what()),
                "what is mapped here stays; start the job again, detach and attach to it");
  throw Error(*lost_);
}

// ---- Without the rank

/// Whether the rank is there still, it has not been asked since the last call.
void Participant::note_loss() {
  if (lost_) return;
  try {
    while (hear(Clock::now())) {
    }
  } catch (const Error& error) {
    if (!lost_) throw;
  }
}

/// A rank that only this engine takes for lost may write the host memory for another one.
void Participant::expect_rank_gone() const {
  constexpr Seconds kDying{5};
  const Deadline deadline(kDying);
  while (rank_start_) {
    const auto now = read_process_stat(fmt::format("/proc/{}/stat", rank_pid_));
    const bool is_there =
        now && now->start_time == *rank_start_ && now->state != 'Z' && now->state != 'X';
    if (!is_there) return;
    if (deadline.expired()) {
      throw request_error(fmt::format("rank {} of the job is lost to this engine, but its process "
                                      "{} is there still",
                                      welcome_.rank, rank_pid_),
                          "end that job first (awex-colocate stop --job DIR, or kill it)");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

bool Participant::restore() {
  expect_role(Role::kTrainer, "awex_restore");
  const Call call(*this, /*needs_rank=*/false);
  note_loss();
  if (!lost_) {
    throw request_error(fmt::format("rank {} of the job is there: awex_restore is for one that is "
                                    "lost",
                                    welcome_.rank),
                        "awex_take_back brings the memory back");
  }
  expect_rank_gone();
  bool proven = true;
  for (const auto tag : kAllTags) proven = restore(tag) && proven;
  if (own_is_away_) call_own_back();
  return proven;
}

bool Participant::restore(Tag tag) {
  auto& of_tag = memory(tag);
  if (of_tag.chunks && !of_tag.mapped) {
    if (!of_tag.copy.is_whole()) {
      throw runtime_error(fmt::format("{} cannot be brought back: it was on its way to host memory "
                                      "when the rank was lost",
                                      tag_name(tag)),
                          "start from a checkpoint");
    }
    unmap(of_tag);  // what had come of it
    of_tag.restored = device_->make_chunks(tag_name(tag), of_tag.chunks->chunking().bytes);
    of_tag.proven = of_tag.copy.bring_back(*device_, *of_tag.restored, *of_tag.chunks);
    of_tag.mapped = of_tag.has_content = of_tag.untold = true;
    of_tag.arena->set_mapped(true);
  }
  if (of_tag.untold) call_back(callbacks_.after_resume, "after_resume", tag);
  of_tag.untold = false;
  return of_tag.proven;
}

// ---- Around steps

void Participant::begin_writing() {
  expect_role(Role::kTrainer, "awex_writing");
  if (lost_) throw Error(*lost_);
  (**page_).writing.store(1);
}

void Participant::end_writing() {
  expect_role(Role::kTrainer, "awex_consistent");
  if (lost_) throw Error(*lost_);
  auto& page = **page_;
  if (page.writing.load() == 0) {
    throw request_error("awex_consistent without awex_writing before it");
  }
  page.steps.fetch_add(1);
  page.writing.store(0);
}

void Participant::book(const std::string& what, uint64_t bytes) {
  if (lost_) throw Error(*lost_);
  booked_.insert(what);
  if (booked_.size() > kMostBooked) {
    throw request_error(fmt::format("an engine tells of {} kinds of memory at most", kMostBooked));
  }
  ToRank message;
  message.kind = ToRank::Kind::kBook;
  message.name = what;
  message.booked_bytes = bytes;
  say(message);
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
  say(message, {&fd, 1});
  kept_ = std::move(bytes);
}

}  // namespace awex::attach
