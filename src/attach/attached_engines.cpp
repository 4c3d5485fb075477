#include "attach/attached_engines.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "attach/attachment.hpp"
#include "attach/declared.hpp"
#include "attach/door.hpp"
#include "base/log.hpp"

namespace awex::attach {

struct AttachedEngines::AtTheDoor {
  AttachSettings settings;
  std::unique_ptr<Door> door;
};

namespace {

Attachment::Settings settings_for(const AttachSettings& settings, Role role) {
  return {role, settings.here.rank, settings.here.host, settings.patience, settings.takes_memory};
}

/// A trainer's weights may be its own; scales that inference is to get with them are the rank's.
void refuse_scales_beside_own(const TrainerParts& parts) {
  if (!parts.common.needs.lends_weights || parts.weights_bytes == parts.common.layout.bytes) return;
  throw request_error(
      "the trainer lends weights of its own, and inference is quantised: its scales lie with the "
      "trainer's weights in the job's memory",
      "let the job have the trainer's weights (adopt)");
}

/// A trainer whose process is its own. The rank has its memory, maps it too, and moves it; what the
/// engine lends of its own memory it opens.
class AttachedTrainer final : public TrainerEngine {
 public:
  AttachedTrainer(Door& door, const AttachSettings& settings, const TrainerParts& parts)
      : parts_(parts), own_bytes_(room_for_weights(parts.common.layout.bytes, parts.common.needs)) {
    refuse_scales_beside_own(parts);
    if (!parts.common.needs.lends_weights) {
      weights_.emplace(parts.common.device, "trainer weights", Tag::kWeights,
                       own_bytes_ + parts.weights_bytes - parts.common.layout.bytes,
                       &parts.common.ledger, HostSharing::kShared);
    }
    if (const uint64_t bytes = parts.common.needs.optimizer; bytes > 0) {
      optimizer_.emplace(parts.common.device, "trainer optimizer", Tag::kOptimizer, bytes,
                         &parts.common.ledger, HostSharing::kShared);
    }
    attachment_.emplace(
        door, settings_for(settings, Role::kTrainer), parts.common,
        std::array<Region*, 3>{region(Tag::kWeights), region(Tag::kOptimizer), nullptr},
        own_bytes_);
    auto& monitor = parts.common.monitor;
    for (const Tag tag : kTags) {
      if (region(tag) != nullptr) region(tag)->take(Deadline(parts.common.silence), monitor);
    }
    attachment_->begin(monitor);
    for (const Tag tag : kTags) attachment_->set_content(tag, true);
  }

  [[nodiscard]] std::string name() const override { return attachment_->name(); }
  [[nodiscard]] Region* region(Tag tag) override {
    auto& held = tag == Tag::kWeights ? weights_ : optimizer_;
    return tag != Tag::kKvCache && held ? &*held : nullptr;
  }
  [[nodiscard]] PlacedMemory placed(Tag tag) override {
    if (tag != Tag::kWeights) return TrainerEngine::placed(tag);
    if (!weights_) {
      const auto* borrowed = attachment_->borrowed();
      return borrowed == nullptr ? PlacedMemory() : borrowed->placed();
    }
    const auto& layout = parts_.common.layout;
    auto segments = segments_of(layout, attachment_->places(), weights_->data());
    if (const uint64_t scales = parts_.weights_bytes - layout.bytes; scales > 0) {
      segments.push_back({layout.bytes, weights_->data() + own_bytes_, scales});
    }
    return {weights_->name(), std::move(segments)};
  }
  [[nodiscard]] uint64_t moves() const override { return attachment_->loans(); }
  [[nodiscard]] const LentMemory* lent() const override { return attachment_->lent(); }
  [[nodiscard]] bool moves_lent() const override { return attachment_->moves_lent(); }
  [[nodiscard]] std::vector<Parameter> tensors(Tag tag) const override {
    if (tag == Tag::kWeights) return parts_.common.layout.parameters;
    return attachment_->declared(tag);
  }

  void await_ready(std::optional<TakenBack> take_back, const Deadline& deadline,
                   WaitMonitor& monitor) override {
    if (take_back && attachment_->has(*take_back)) return attachment_->door().use_consent();
    attachment_->await_ready(deadline, monitor, inherit());
  }
  void go_on(const CommandOutcome& end) override {
    ++released_from_consent_;
    if (attachment_->door().is_ready()) secure(parts_.common.monitor);
    attachment_->go_on(end);
  }
  void command_over(const CommandOutcome& end) override {
    ++released_from_consent_;
    // Some trainers' memory may have begun to leave: then those have lost their older copies.
    if (end.error && end.is_hand_over && end.all_consented) must_secure_ = true;
    if (attachment_->door().is_ready()) secure(parts_.common.monitor);
    attachment_->command_over(end);
  }
  [[nodiscard]] EngineWish wish() override { return attachment_->wish(); }
  [[nodiscard]] Attendance attendance() const override {
    auto attendance = attachment_->attendance();
    attendance.is_torn = !attendance.is_here && page().writing.load() != 0;
    attendance.has_all = attachment_->has(TakenBack::kAll);
    attendance.has_weights = attachment_->has(TakenBack::kWeights);
    return attendance;
  }
  /// One that has come is let in once all trainers have been heard of.
  void attend(WaitMonitor& monitor) override {
    if (attachment_->door().state() != Door::State::kGreeted) {
      asks_of_others_ = false;
      must_return_.reset();
    } else if (!must_return_) {
      asks_of_others_ = true;
      return;
    }
    attachment_->attend(inherit(), monitor);
  }
  void hear_of_others(bool must_return) override {
    if (asks_of_others_) must_return_ = must_return;
  }
  void copy_by(const Copies& copies) override { by_ = copies; }

  void load(const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) override {}
  void loaded(const std::optional<Error>& refusal, const Deadline& deadline,
              WaitMonitor& monitor) override {
    attachment_->loaded(refusal, deadline, monitor);
  }
  void before_release(Tag tag, const Deadline& deadline, WaitMonitor& monitor) override {
    unless_ended(tag, monitor, [&] { attachment_->release(tag, deadline, monitor); });
    if (region(tag) == nullptr) return;  // what is its own, it copies itself
    copies_.at(static_cast<size_t>(tag)) = Copy{steps(), attachment_->door().kept()};
  }
  void chunk_copied(Tag tag, uint64_t chunk, const ChunkDigests& digests, const Deadline& deadline,
                    WaitMonitor& monitor) override {
    unless_ended(tag, monitor,
                 [&] { attachment_->let_go(tag, chunk, digests, deadline, monitor); });
  }
  void after_change(Tag tag, const Change& /*change*/, const Deadline& deadline,
                    WaitMonitor& monitor) override {
    attachment_->map(tag, /*has_content=*/true, deadline, monitor);
  }

  /// It trains for itself.
  void train(const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) override {}
  [[nodiscard]] uint64_t steps() const override { return page().steps.load(); }
  [[nodiscard]] uint64_t changes() const override {
    const uint64_t counted = steps();
    if (weights_) return counted > 0 ? counted : attachment_->weights_given();
    // What is its own it may have written whenever it did not consent; another engine brings
    // others.
    constexpr uint64_t kOfAnEngine = uint64_t{1} << 40;
    return (counted > 0 ? counted : released_from_consent_) + attachment_->seals() * kOfAnEngine;
  }

 private:
  static constexpr std::array kTags{Tag::kWeights, Tag::kOptimizer};

  /// Asks for memory of the engine. It has consented: what it has handed over serves, although it
  /// dies.
  template <class Ask>
  void unless_ended(Tag tag, WaitMonitor& monitor, const Ask& ask) {
    try {
      ask();
    } catch (const Error&) {
      if (!attachment_->release_of_ended(tag, monitor)) throw;
      monitor.poll();
    }
  }

  /// What the host copy of a tag is of.
  struct Copy {
    uint64_t steps = 0;
    std::string kept;
  };

  [[nodiscard]] ControlPage& page() const { return attachment_->door().page(); }
  [[nodiscard]] Attachment::Inherit inherit() {
    return [this](WaitMonitor& monitor) { return inheritance(monitor); };
  }

  [[nodiscard]] bool has_copy(Tag tag) {
    const auto& copy = copies_.at(static_cast<size_t>(tag));
    return copy && copy->steps == steps() && region(tag)->has_copy();
  }

  /// What host memory has of all that is the job's, if that is of one step.
  [[nodiscard]] const Copy* whole_copy() {
    const Copy* whole = nullptr;
    for (const Tag tag : kTags) {
      if (region(tag) == nullptr) continue;
      const auto& copy = copies_.at(static_cast<size_t>(tag));
      if (!copy || !region(tag)->has_copy()) return nullptr;
      if (whole != nullptr && whole->steps != copy->steps) return nullptr;
      if (whole == nullptr) whole = &*copy;  // the weights', which leave last
    }
    return whole;
  }

  /// Where a hand-over has failed halfway, host memory has parts of several steps, or not the same
  /// step on all trainers. Before the engine trains on, all of its memory is copied that has no
  /// copy of this one.
  void secure(WaitMonitor& monitor) {
    const bool has_any = std::any_of(copies_.begin(), copies_.end(),
                                     [](const auto& copy) { return copy.has_value(); });
    const Copy* whole = whole_copy();
    const bool is_secure = whole != nullptr && (!must_secure_ || whole->steps == steps());
    if (is_secure) must_secure_ = false;
    if (!has_any || is_secure || !by_.back_up || page().writing.load() != 0) return;
    for (const Tag tag : kTags) {
      if (region(tag) != nullptr && region(tag)->state() != RegionState::kResident) return;
    }
    try {
      for (const Tag tag : kTags) {
        if (region(tag) == nullptr || has_copy(tag)) continue;
        by_.back_up(tag, monitor);
        copies_.at(static_cast<size_t>(tag)) = Copy{steps(), attachment_->door().kept()};
      }
      must_secure_ = false;
    } catch (const Error& error) {
      monitor.poll();
      log::warning(fmt::format("rank {}: {}", attachment_->rank(), error.what()));
    }
  }

  /// The memory as the former engine has left it; as it was handed over last where that engine was
  /// writing.
  Attachment::Inheritance inheritance(WaitMonitor& monitor) {
    const bool is_torn = page().writing.load() != 0;
    if (!weights_) {
      log::warning(
          fmt::format("rank {}: the weights were the lost engine's own memory and are "
                      "gone: the next one brings them from a checkpoint",
                      attachment_->rank()));
      if (!optimizer_) {
        page().steps = 0;
        page().writing = 0;
        return {};
      }
    }
    Attachment::Inheritance as_it_is{true, attachment_->door().kept()};
    if (!is_torn && !must_return_.value_or(false)) {
      secure(monitor);
      return as_it_is;
    }
    const Copy* whole = whole_copy();
    if (!is_torn && (whole == nullptr || whole->steps == steps())) return as_it_is;
    if (whole == nullptr || !by_.restore) {
      log::warning(fmt::format(
          "rank {}: the engine was writing when it was lost, and nothing whole has been handed "
          "over before: the next one begins anew",
          attachment_->rank()));
      page().steps = 0;
      page().writing = 0;
      return {};
    }
    by_.restore(monitor);
    log::note(fmt::format(
        "rank {}: {}optimizer state {} that of step {} again, which was handed over last",
        attachment_->rank(), weights_ ? "weights and " : "the ", weights_ ? "are" : "is",
        whole->steps));
    page().steps = whole->steps;
    page().writing = 0;
    return {true, whole->kept};
  }

  TrainerParts parts_;
  uint64_t own_bytes_;             ///< What lies behind them are scales.
  std::optional<Region> weights_;  ///< Absent where the engine lends its own.
  std::optional<Region> optimizer_;
  std::optional<Attachment> attachment_;
  std::array<std::optional<Copy>, 3> copies_;
  uint64_t released_from_consent_ = 0;  ///< How often.
  Copies by_;
  bool must_secure_ = false;         ///< A hand-over has failed since the last whole copy.
  bool asks_of_others_ = false;      ///< One has come in place of the lost one,
  std::optional<bool> must_return_;  ///< and this is what all trainers say.
};

/// The part of the layout's gaps that lies in its parameters: what is between them may be anything
/// of the engine's.
std::vector<Gap> gaps_in_parameters(const RankLayout& layout, const Catalogue& catalogue) {
  std::vector<Gap> gaps;
  for (const auto& gap : layout.gaps(catalogue)) {
    for (const auto& parameter : layout.parameters) {
      const uint64_t begin = std::max(gap.offset_bytes, parameter.offset_bytes);
      const uint64_t end =
          std::min(gap.offset_bytes + gap.bytes, parameter.offset_bytes + parameter.bytes());
      if (begin < end) gaps.push_back({begin, end - begin});
    }
  }
  return gaps;
}

/// An inference engine whose process is its own.
class AttachedInference final : public Engine {
 public:
  AttachedInference(Door& door, const AttachSettings& settings, const InferenceParts& parts)
      : parts_(parts.common),
        own_bytes_(room_for_weights(parts.common.layout.bytes, parts.common.needs)),
        gaps_(gaps_in_parameters(parts.common.layout, parts.common.catalogue)),
        weights_(parts.common.device, "inference weights", Tag::kWeights, own_bytes_,
                 &parts.common.ledger) {
    if (const uint64_t bytes = parts.common.needs.kv_cache; bytes > 0) {
      kv_cache_.emplace(parts.common.device, "inference KV cache", Tag::kKvCache, bytes,
                        &parts.common.ledger);
    }
    attachment_.emplace(door, settings_for(settings, Role::kInference), parts.common,
                        std::array<Region*, 3>{&weights_, nullptr, region(Tag::kKvCache)},
                        own_bytes_);
    auto& monitor = parts.common.monitor;
    if (settings.admits_by_digest) weights_.take(Deadline(parts.common.silence), monitor);
    attachment_->begin(monitor);
  }

  [[nodiscard]] std::string name() const override { return attachment_->name(); }
  [[nodiscard]] Region* region(Tag tag) override {
    if (tag == Tag::kWeights) return &weights_;
    return tag == Tag::kKvCache && kv_cache_ ? &*kv_cache_ : nullptr;
  }
  [[nodiscard]] PlacedMemory placed(Tag tag) override {
    if (tag != Tag::kWeights) return Engine::placed(tag);
    return {weights_.name(), segments_of(parts_.layout, attachment_->places(), weights_.data())};
  }
  [[nodiscard]] std::vector<Parameter> tensors(Tag tag) const override {
    if (tag == Tag::kWeights) return parts_.layout.parameters;
    return {};
  }

  void await_ready(std::optional<TakenBack> take_back, const Deadline& deadline,
                   WaitMonitor& monitor) override {
    if (take_back && attachment_->has_none()) return attachment_->door().use_consent();
    attachment_->await_ready(deadline, monitor, inherit());
  }
  void go_on(const CommandOutcome& end) override { attachment_->go_on(end); }
  void command_over(const CommandOutcome& end) override { attachment_->command_over(end); }
  [[nodiscard]] EngineWish wish() override { return attachment_->wish(); }
  [[nodiscard]] Attendance attendance() const override { return attachment_->attendance(); }
  void attend(WaitMonitor& monitor) override { attachment_->attend(inherit(), monitor); }

  void load(const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) override {}
  void loaded(const std::optional<Error>& refusal, const Deadline& deadline,
              WaitMonitor& monitor) override {
    attachment_->loaded(refusal, deadline, monitor);
  }
  void before_release(Tag tag, const Deadline& deadline, WaitMonitor& monitor) override {
    if (tag == Tag::kWeights) is_committed_ = false;
    attachment_->release(tag, deadline, monitor);
  }
  void after_change(Tag tag, const Change& change, const Deadline& deadline,
                    WaitMonitor& monitor) override {
    if (change.kind == Change::Kind::kCommitted) {
      is_committed_ = true;
      attachment_->set_content(Tag::kWeights, true);
      attachment_->tell_changed(change.version, deadline, monitor);
      return;
    }
    if (tag == Tag::kWeights) {
      is_committed_ = false;
      clear_gaps(deadline, monitor);
    }
    attachment_->map(tag, /*has_content=*/false, deadline, monitor);
  }

 private:
  [[nodiscard]] Attachment::Inherit inherit() {
    return [this](WaitMonitor& /*monitor*/) {
      attachment_->set_content(Tag::kWeights, is_committed_);
      return Attachment::Inheritance{is_committed_, {}};
    };
  }

  void clear_gaps(const Deadline& deadline, WaitMonitor& monitor) {
    const PlacedMemory weights = placed(Tag::kWeights);
    for (const auto& gap : gaps_) {
      parts_.queue.fill_zero(weights.at(gap.offset_bytes, gap.bytes), gap.bytes);
    }
    parts_.queue.finish("clearing the padding of the weights", deadline, monitor);
  }

  EngineParts parts_;
  uint64_t own_bytes_;
  std::vector<Gap> gaps_;
  Region weights_;
  std::optional<Region> kv_cache_;
  std::optional<Attachment> attachment_;
  bool is_committed_ = false;  ///< The weights are those of a version, and there.
};

}  // namespace

AttachedEngines::AttachedEngines(AttachSettings settings)
    : at_the_door_(std::make_unique<AtTheDoor>(AtTheDoor{std::move(settings), nullptr})) {}

AttachedEngines::~AttachedEngines() = default;

void AttachedEngines::end_with(const Error& error) {
  if (at_the_door_->door) at_the_door_->door->end_with(error);
}

void AttachedEngines::bury(const std::function<bool(const EngineRecord&)>& is_lost) const noexcept {
  bury_engine_records(at_the_door_->settings.job_directory, at_the_door_->settings.here, is_lost);
}

bool AttachedEngines::attaches(Role role) const {
  const auto& settings = at_the_door_->settings;
  return role == Role::kTrainer ? settings.trainer : settings.inference;
}

bool AttachedEngines::admits_by_digest() const {
  return attaches(Role::kInference) && at_the_door_->settings.admits_by_digest;
}

EngineNeeds AttachedEngines::await_engine(Role role, uint32_t position, const Device& device,
                                          WaitMonitor& monitor) const {
  if (!attaches(role)) return {};
  const auto& settings = at_the_door_->settings;
  EngineRecord record = settings.here;
  record.role = role;
  record.device = static_cast<int>(position);
  record.uuid = device.identity().uuid;
  record.backend = backend_name(device.kind());
  auto& door = at_the_door_->door;
  door = std::make_unique<Door>(settings.job_directory, record, settings.wake);
  log::note(fmt::format("rank {} waits for its {} engine, which attaches to {} (AWEX_COLOCATE_JOB)",
                        record.rank, role_name(role), settings.job_directory));
  door->await_hello(settings.patience, monitor);
  const auto hello = door->hello();
  const auto of = [&](Tag tag) { return hello.bytes.at(static_cast<size_t>(tag)); };
  return {of(Tag::kWeights), role == Role::kTrainer ? of(Tag::kOptimizer) : 0,
          role == Role::kInference ? of(Tag::kKvCache) : 0,
          role == Role::kTrainer && hello.own_weights != OwnWeights::kNone,
          role == Role::kTrainer && hello.own_weights == OwnWeights::kMoves};
}

std::unique_ptr<TrainerEngine> AttachedEngines::make_trainer(const TrainerParts& parts) const {
  if (!attaches(Role::kTrainer)) return built_in_engines().make_trainer(parts);
  return std::make_unique<AttachedTrainer>(*at_the_door_->door, at_the_door_->settings, parts);
}

std::unique_ptr<Engine> AttachedEngines::make_inference(const InferenceParts& parts) const {
  if (!attaches(Role::kInference)) return built_in_engines().make_inference(parts);
  return std::make_unique<AttachedInference>(*at_the_door_->door, at_the_door_->settings, parts);
}

}  // namespace awex::attach
