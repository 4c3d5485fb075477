#include "attach/attachment.hpp"

#include <unistd.h>

#include <algorithm>
#include <span>
#include <utility>

#include "base/fixed_text.hpp"
#include "base/log.hpp"
#include "base/process_activity.hpp"

namespace awex::attach {
Attachment::Attachment(Door& door, Settings settings, const EngineParts& parts,
                       std::array<Region*, 3> regions, uint64_t own_bytes)
    : door_(door),
      settings_(std::move(settings)),
      parts_(parts),
      regions_(regions),
      own_bytes_(own_bytes) {
  for (const Tag tag : kAllTags) holds_.at(static_cast<size_t>(tag)).resize(chunks_of(tag));
  if (parts.needs.lends_weights) {
    own_weights_ = parts.needs.moves_weights ? OwnWeights::kMoves : OwnWeights::kStays;
  }
}

void Attachment::begin(WaitMonitor& monitor) {
  const Deadline patience(settings_.patience);
  while (true) {
    try {
      door_.await_hello(settings_.patience, monitor);
      door_.page().steps = 0;  // One that has died here has left nothing.
      door_.page().writing = 0;
      welcome({}, Deadline(parts_.silence), monitor);
      while (true) {
        const ToRank seal = door_.await_seal(settings_.patience, monitor);
        const auto wrong = look_at_seal(seal);
        if (!wrong) return accept(seal);
        log::warning(fmt::format("rank {}: {}; {}", settings_.rank, wrong->what(), wrong->hint()));
        door_.answer_seal(wrong, Deadline(parts_.silence), monitor);
      }
    } catch (const Error& error) {
      // Another may come in its place.
      if (error.code() != ExitCode::kPeerLost || door_.state() != Door::State::kLost ||
          patience.expired()) {
        throw;
      }
      log::warning(fmt::format("{}; rank {} waits for another", error.what(), settings_.rank));
    }
  }
}

void Attachment::loaded(const std::optional<Error>& refusal, const Deadline& deadline,
                        WaitMonitor& monitor) {
  door_.answer_seal(refusal, deadline, monitor);
}

void Attachment::attend(const Inherit& inherit, WaitMonitor& monitor) {
  const auto state = door_.state();
  const bool is_lost = state == Door::State::kLost;
  if (is_lost && !told_of_loss_) {
    (door_.has_detached() ? log::note : log::warning)(door_.lost_error().what());
  }
  told_of_loss_ = is_lost;
  if (is_lost) forget_lent();
  if (state != Door::State::kGreeted && state != Door::State::kAttached) return;
  try {
    if (state == Door::State::kGreeted) {
      welcome(inherit(monitor), Deadline(parts_.silence), monitor);
      log::note(fmt::format("rank {}: {} has attached in place of the one before", settings_.rank,
                            door_.describe()));
      return;
    }
    const auto seal = door_.next_seal();
    if (!seal) return;
    const auto wrong = look_at_seal(*seal);
    if (!wrong) accept(*seal);
    door_.answer_seal(wrong, Deadline(parts_.silence), monitor);
  } catch (const Error& error) {
    if (door_.state() == Door::State::kLost) {
      log::warning(error.what());
      return;
    }
    monitor.poll();  // what fails the job is not the engine's
    log::warning(
        fmt::format("rank {} refuses {}: {}", settings_.rank, door_.describe(), error.what()));
    door_.refuse(error);
  }
}

/// Tells the engine where it is, and gives it what is there.
void Attachment::welcome(const Inheritance& inheritance, const Deadline& deadline,
                         WaitMonitor& monitor) {
  mapped_ = {};
  for (const Tag tag : kAllTags) {
    has_descriptor_.at(static_cast<size_t>(tag)).assign(chunks_of(tag), false);
  }
  engine_pid_ = door_.pid();
  if (lends(Tag::kWeights)) mapped(Tag::kWeights) = Mapped::kYes;
  try {
    check_own_weights();
    check_bytes();
  } catch (const Error& error) {
    door_.refuse(error);
    throw door_.lost_error();
  }
  ToEngine message;
  message.rank = settings_.rank;
  message.role_rank = parts_.role_rank;
  message.host = settings_.host;
  message.model = parts_.catalogue.model_name();
  message.layout = parts_.spec;
  message.backend = backend_name(parts_.device.kind());
  message.reattached = inheritance.is_left;
  message.version = version_;
  message.places = places_.empty() ? parts_.layout.parameters : places_;
  message.silence_s = parts_.silence.count();
  message.takes_memory = settings_.takes_memory;
  for (const Tag tag : kAllTags) {
    if (region(tag) == nullptr) continue;
    message.bytes.at(static_cast<size_t>(tag)) = region(tag)->bytes();
    message.chunk_bytes.at(static_cast<size_t>(tag)) = region(tag)->range().chunk_bytes();
    message.mapped.at(static_cast<size_t>(tag)) = region(tag)->state() == RegionState::kResident;
    message.away.at(static_cast<size_t>(tag)) = is_away(tag);
  }
  door_.welcome(std::move(message), inheritance.kept, deadline, monitor);
  for (const Tag tag : kAllTags) {
    if (region(tag) == nullptr || region(tag)->state() != RegionState::kResident) continue;
    map(tag, inheritance.is_left && has_content_.at(static_cast<size_t>(tag)), deadline, monitor);
  }
  for (const Tag tag : kAllTags) {
    if (!is_away(tag)) continue;
    mapped(tag) = Mapped::kLeaving;
    send_chunks(tag, /*has_content=*/true, deadline, monitor);
  }
}

/// Whether a trainer's memory of a tag is in host memory, or a part of it.
bool Attachment::is_away(Tag tag) const {
  if (region(tag) == nullptr) return false;
  const auto state = region(tag)->state();
  return state != RegionState::kResident && state != RegionState::kDiscarded;
}

/// Whether engines of the other role alone have memory of the tag.
bool Attachment::is_others(Tag tag) const {
  return tag == (settings_.role == Role::kTrainer ? Tag::kKvCache : Tag::kOptimizer);
}

/// The first engine's wants have made the memory.
void Attachment::check_bytes() const {
  const ToRank hello = door_.hello();
  for (const Tag tag : kAllTags) {
    const uint64_t wanted = hello.bytes.at(static_cast<size_t>(tag));
    uint64_t has = region(tag) == nullptr ? 0 : region(tag)->bytes();
    if (tag == Tag::kWeights) has = own_bytes_;
    if (wanted <= has) continue;
    if (is_others(tag)) {
      throw request_error(
          fmt::format("{} asks for {} of {}, which is none of a {} engine's", door_.describe(),
                      format_bytes(wanted), tag_name(tag), role_name(settings_.role)),
          fmt::format("leave {} out of what it asks for", tag_name(tag)));
    }
    throw request_error(
        fmt::format("{} asks for {} of {}, and rank {} has {} for its engine", door_.describe(),
                    format_bytes(wanted), tag_name(tag), settings_.rank, format_bytes(has)),
        "ask for no more than the engine that attached first, or start the job anew");
  }
}

/// So have they been reckoned with.
void Attachment::check_own_weights() const {
  const auto own = door_.hello().own_weights;
  if (own == own_weights_) return;
  const auto kind = [](OwnWeights which) {
    return which == OwnWeights::kNone    ? "in the job's memory"
           : which == OwnWeights::kStays ? "in memory of its own that stays"
                                         : "in memory of its own that it moves";
  };
  throw request_error(
      fmt::format("{} has its weights {}, and the engine that attached first to rank {} {}",
                  door_.describe(), kind(own), settings_.rank, kind(own_weights_)),
      "attach it as that one, or start the job anew");
}

std::optional<Error> Attachment::differences_of(const std::vector<Parameter>& weights) const {
  // Memory of the engine's own is where it is: places are addresses.
  const bool is_own = lends(Tag::kWeights);
  const WantedWeights wanted{parts_.catalogue, parts_.layout, parts_.spec,
                             is_own ? UINT64_MAX : own_bytes_,
                             has_sealed_ && !is_own ? places_ : std::vector<Parameter>()};
  return differences(weights, wanted);
}

std::optional<Error> Attachment::look_at_seal(const ToRank& seal) const {
  if (auto error = differences_of(seal.declared.at(static_cast<size_t>(Tag::kWeights)))) {
    return error;
  }
  for (const Tag tag : {Tag::kOptimizer, Tag::kKvCache}) {
    const uint64_t room = region(tag) == nullptr ? 0 : region(tag)->bytes();
    if (auto error = misplaced(seal.declared.at(static_cast<size_t>(tag)), tag, room)) return error;
  }
  return std::nullopt;
}

void Attachment::accept(const ToRank& seal) {
  declared_ = seal.declared;
  places_ = in_order_of(parts_.layout, declared(Tag::kWeights));
  if (lends(Tag::kWeights)) borrow(door_.take_loan());
  has_sealed_ = true;
  ++seals_;
}

/// Opens what the engine lends.
void Attachment::borrow(Loan loan) {
  forget_lent();
  if (auto error = differences_of(loan.tensors)) throw std::move(*error);
  places_ = in_order_of(parts_.layout, loan.tensors);
  LentMemory lent{++loans_, own_weights_ == OwnWeights::kStays, std::move(loan.lendings),
                  segments_of(parts_.layout, places_, nullptr)};
  borrowed_.emplace(parts_.device, "the weights that " + door_.describe() + " lends", lent);
  lent_.emplace(std::move(lent));
}

void Attachment::forget_lent() {
  borrowed_.reset();
  lent_.reset();
}

void Attachment::release(Tag tag, const Deadline& deadline, WaitMonitor& monitor) {
  if (mapped(tag) == Mapped::kNo || mapped(tag) == Mapped::kLeaving) return;
  if (lends(tag)) forget_lent();
  ToEngine message;
  message.kind = ToEngine::Kind::kRelease;
  message.tag = tag;
  message.version = version_;
  mapped(tag) = Mapped::kUnsure;
  door_.ask(message, {}, deadline, monitor);
  const bool keeps_chunks = settings_.role == Role::kTrainer && !lends(tag);
  mapped(tag) = keeps_chunks ? Mapped::kLeaving : Mapped::kNo;
}

void Attachment::let_go(Tag tag, uint64_t chunk, const ChunkDigests& digests,
                        const Deadline& deadline, WaitMonitor& monitor) {
  holds_.at(static_cast<size_t>(tag)).at(chunk) = digests;
  if (mapped(tag) == Mapped::kNo) return;
  if (mapped(tag) != Mapped::kLeaving) {
    throw runtime_error(
        fmt::format("{} leaves, and {} has not been asked for it",
                    region(tag)->range().chunking().describe(chunk, 1), door_.describe()),
        "this is a fault of awex-colocate: please report it");
  }
  send_copied(tag, chunk, 1, deadline, monitor);
}

bool Attachment::release_of_ended(Tag tag, WaitMonitor& monitor) {
  if (lends(tag) || !has_ended(monitor)) return false;
  mapped(tag) = Mapped::kNo;
  return true;
}

bool Attachment::has_ended(WaitMonitor& monitor) const {
  constexpr Seconds kDying{10};  // The driver takes the memory of a GPU's context apart.
  const auto state = door_.state();
  const bool is_gone = state == Door::State::kLost || state == Door::State::kGreeted;
  // A process of another namespace has no pid here, and /proc may not be there to look at.
  const bool can_look = engine_pid_ > 0 && process_stat_of(::getpid());
  if (!is_gone || !can_look) return false;
  const Deadline dying(kDying);
  for (uint64_t spins = 0;; ++spins) {
    const auto process = process_stat_of(engine_pid_);
    if (!process || process->has_ended()) return true;
    if (dying.expired()) return false;
    monitor.poll();
    pause_in_wait(spins);
  }
}

void Attachment::map(Tag tag, bool has_content, const Deadline& deadline, WaitMonitor& monitor) {
  if (mapped(tag) == Mapped::kYes) return;
  release(tag, deadline, monitor);
  mapped(tag) = Mapped::kUnsure;
  if (lends(tag)) {
    ask_for_own(deadline, monitor);
  } else {
    send_chunks(tag, has_content, deadline, monitor);
  }
  mapped(tag) = Mapped::kYes;
  if (tag == Tag::kWeights) ++weights_given_;
}

/// The engine brings its own memory back, and lends it anew.
void Attachment::ask_for_own(const Deadline& deadline, WaitMonitor& monitor) {
  ToEngine message;
  message.kind = ToEngine::Kind::kMap;
  message.tag = Tag::kWeights;
  message.version = version_;
  door_.ask(message, {}, deadline, monitor);
  borrow(door_.take_loan());
}

/// Where each chunk of the tag is: on the device, or in host memory.
void Attachment::send_chunks(Tag tag, bool has_content, const Deadline& deadline,
                             WaitMonitor& monitor) {
  const auto& held = *region(tag);
  const uint64_t chunks = chunks_of(tag);
  for (uint64_t first = 0; first < chunks;) {
    const bool in_host = held.is_in_host(first);
    const uint64_t most = std::min<uint64_t>(chunks, first + kMostFds);
    uint64_t end = first + 1;
    while (end < most && held.is_in_host(end) == in_host) ++end;
    if (in_host) {
      send_copied(tag, first, end - first, deadline, monitor);
    } else {
      send_mapped(tag, first, end - first, has_content, deadline, monitor);
    }
    first = end;
  }
}

/// The last one of the tag completes it, where all of it is on the device.
void Attachment::send_mapped(Tag tag, uint64_t first, uint64_t count, bool has_content,
                             const Deadline& deadline, WaitMonitor& monitor) {
  std::vector<int> fds;
  for (uint64_t chunk = first; chunk < first + count; ++chunk) {
    fds.push_back(region(tag)->range().owned().export_fd(chunk));
  }
  ToEngine message;
  message.kind = ToEngine::Kind::kMap;
  message.tag = tag;
  message.version = version_;
  message.first = first;
  message.last = !is_away(tag) && first + count == chunks_of(tag);
  message.has_content = has_content;
  door_.ask(message, fds, deadline, monitor);
}

/// The descriptors are of memory that is kept for life, so an engine gets them once.
void Attachment::send_copied(Tag tag, uint64_t first, uint64_t count, const Deadline& deadline,
                             WaitMonitor& monitor) {
  ToEngine message;
  message.kind = ToEngine::Kind::kCopied;
  message.tag = tag;
  message.first = first;
  const auto& holds = holds_.at(static_cast<size_t>(tag));
  message.holds.assign(holds.begin() + static_cast<ptrdiff_t>(first),
                       holds.begin() + static_cast<ptrdiff_t>(first + count));
  auto& has_descriptor = has_descriptor_.at(static_cast<size_t>(tag));
  std::vector<int> fds;
  for (uint64_t chunk = first; chunk < first + count && !has_descriptor[chunk]; ++chunk) {
    fds.push_back(region(tag)->backup_fd(chunk));
  }
  door_.ask(message, fds, deadline, monitor);
  std::fill_n(has_descriptor.begin() + static_cast<ptrdiff_t>(first), count, true);
}

void Attachment::tell_changed(uint64_t version, const Deadline& deadline, WaitMonitor& monitor) {
  version_ = version;
  ToEngine message;
  message.kind = ToEngine::Kind::kChanged;
  message.version = version;
  door_.ask(message, {}, deadline, monitor);
}

void Attachment::go_on(const CommandOutcome& end) {
  command_over(end);
  goes_on_ = true;
}

void Attachment::command_over(const CommandOutcome& end) {
  // By now it may have consented to the next one.
  if (std::exchange(goes_on_, false)) return;
  version_ = end.version;
  ToEngine message;
  message.kind = ToEngine::Kind::kOver;
  message.version = end.version;
  const bool is_trainer = settings_.role == Role::kTrainer;
  message.gave = is_trainer ? end.is_hand_over : end.is_take_back;
  message.brought = is_trainer ? end.is_take_back : end.is_hand_over;
  message.error = end.error;
  door_.tell(message);
}

bool Attachment::has(TakenBack what) const {
  const auto has_tag = [this](Tag tag) {
    return (region(tag) == nullptr && !lends(tag)) ||
           mapped_.at(static_cast<size_t>(tag)) == Mapped::kYes;
  };
  if (door_.state() != Door::State::kSealed) return false;
  if (what == TakenBack::kWeights) return has_tag(Tag::kWeights);
  return std::all_of(kAllTags.begin(), kAllTags.end(), has_tag);
}

bool Attachment::has_none() const {
  return std::all_of(mapped_.begin(), mapped_.end(),
                     [](Mapped mapped) { return mapped == Mapped::kNo; });
}

/// Of the device, that are the engine's own.
uint64_t Attachment::own_bytes() const {
  const uint64_t booked = door_.booked_bytes();
  return booked + std::min(lent_ ? lent_->bytes() : 0, UINT64_MAX - booked);
}

Attendance Attachment::attendance() const {
  const auto state = door_.state();
  Attendance attendance{.pid = door_.pid(),
                        .is_here = state == Door::State::kSealed,
                        .wish = door_.wish(),
                        .own_bytes = own_bytes()};
  switch (state) {
    case Door::State::kAbsent:
      attendance.state = fixed_text<48>("awaited");
      break;
    case Door::State::kGreeted:
    case Door::State::kAttached:
      attendance.state = fixed_text<48>("attaching");
      break;
    case Door::State::kSealed:
      attendance.state = fixed_text<48>(door_.is_ready() ? "ready" : "busy");
      break;
    case Door::State::kLost:
      attendance.state = fixed_text<48>(door_.describe_loss());
      break;
  }
  return attendance;
}

std::string Attachment::name() const {
  const auto name = door_.hello().name;
  return name.empty() ? "none yet" : name;
}

}  // namespace awex::attach
