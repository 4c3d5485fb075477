// Engines that are none of the built-in ones go through whole updates and single commands: what the
// Engine interface says is all that a cycle needs.
#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "cycle/session.hpp"
#include "cycle/trainer_member.hpp"
#include "engine/engine.hpp"
#include "layout/engines.hpp"
#include "model/weights.hpp"
#include "support/mpi_job.hpp"

namespace awex::test {
namespace {

using Events = std::vector<std::string>;

/// The bits of an element after so many training steps: no two elements of a model, nor two steps
/// of one, have bits in common for long.
uint16_t pattern(uint64_t step, uint32_t tensor, uint64_t index) {
  uint64_t bits = (step * 1000003 + tensor) * 1000033 + index;
  bits ^= bits >> 17;
  bits *= 0xed5ad4bbU;
  return static_cast<uint16_t>(bits ^ (bits >> 16));
}

/// Calls work(address of the element, tensor, canonical index) for all elements that a rank holds.
template <class Work>
void for_each_element(const EngineParts& parts, const PlacedMemory& memory, const Work& work) {
  for (const auto& shard : parts.layout.shards) {
    const auto& tensor = parts.catalogue.tensors()[shard.tensor];
    for (uint64_t row = 0; row < shard.box.rows.size(); ++row) {
      for (uint64_t col = 0; col < shard.box.cols.size(); ++col) {
        const uint64_t at = shard.offset_bytes + (row * shard.row_stride + col) * sizeof(uint16_t);
        work(memory.at(at, sizeof(uint16_t)), shard.tensor,
             (shard.box.rows.begin + row) * tensor.cols + shard.box.cols.begin + col);
      }
    }
  }
}

/// Holds weights alone, whose memory it takes long before the cycle begins.
class PatternTrainer : public TrainerEngine {
 public:
  PatternTrainer(const TrainerParts& parts, Events& events)
      : parts_(parts.common),
        events_(events),
        weights_(parts_.device, "somebody else's weights", Tag::kWeights, parts.weights_bytes,
                 &parts_.ledger) {
    weights_.take(job().deadline(), job());
    std::memset(weights_.data(), 0, weights_.bytes());
  }

  [[nodiscard]] std::string name() const override { return "pattern"; }
  [[nodiscard]] Region* region(Tag tag) override {
    return tag == Tag::kWeights ? &weights_ : nullptr;
  }
  [[nodiscard]] std::vector<Parameter> tensors(Tag tag) const override {
    return tag == Tag::kWeights ? parts_.layout.parameters : std::vector<Parameter>{};
  }
  void load(const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) override {
    events_.emplace_back("load");
    write();
  }
  void before_release(Tag tag, const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) override {
    CHECK((weights_.state() == RegionState::kResident));
    events_.push_back(fmt::format("release {}", tag_name(tag)));
  }
  void after_change(Tag tag, const Change& change, const Deadline& /*deadline*/,
                    WaitMonitor& /*monitor*/) override {
    CHECK((change.kind == Change::Kind::kResumed));
    CHECK((weights_.state() == RegionState::kResident));
    events_.push_back(fmt::format("resumed {}", tag_name(tag)));
  }
  void train(const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) override {
    events_.emplace_back("train");
    ++steps_;
    write();
  }
  [[nodiscard]] uint64_t steps() const override { return steps_; }

 private:
  void write() {
    for_each_element(parts_, placed(Tag::kWeights),
                     [&](std::byte* at, uint32_t tensor, uint64_t index) {
                       const uint16_t bits = pattern(steps_, tensor, index);
                       std::memcpy(at, &bits, sizeof(bits));
                     });
  }

  EngineParts parts_;
  Events& events_;
  Region weights_;
  uint64_t steps_ = 0;
};

/// One of two segments, of which the second may lie elsewhere than in its region.
class CutTrainer final : public PatternTrainer {
 public:
  using PatternTrainer::PatternTrainer;

  [[nodiscard]] PlacedMemory placed(Tag tag) override {
    const Region& weights = *region(tag);
    const uint64_t half = weights.bytes() / 16 * 8;
    return {"cut weights",
            {{0, weights.data(), half},
             {half, weights.data() + half + beyond, weights.bytes() - half}}};
  }

  uint64_t beyond = 0;  ///< Bytes between the two.
};

/// Compares its weights with what the trainer must have had, whenever a version is committed.
class PatternInference : public Engine {
 public:
  PatternInference(const InferenceParts& parts, const uint64_t& steps, Events& events)
      : PatternInference(parts, parts.common.layout.bytes, steps, events) {}
  PatternInference(const InferenceParts& parts, uint64_t bytes, const uint64_t& steps,
                   Events& events)
      : parts_(parts.common),
        steps_(steps),
        events_(events),
        weights_(parts_.device, "somebody else's weights", Tag::kWeights, bytes, &parts_.ledger) {}

  [[nodiscard]] std::string name() const override { return "pattern"; }
  [[nodiscard]] Region* region(Tag tag) override {
    return tag == Tag::kWeights ? &weights_ : nullptr;
  }
  [[nodiscard]] std::vector<Parameter> tensors(Tag tag) const override {
    return tag == Tag::kWeights ? parts_.layout.parameters : std::vector<Parameter>{};
  }
  void load(const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) override {
    events_.emplace_back("load");
  }
  void before_release(Tag tag, const Deadline& /*deadline*/, WaitMonitor& /*monitor*/) override {
    events_.push_back(fmt::format("release {}", tag_name(tag)));
  }
  void after_change(Tag tag, const Change& change, const Deadline& /*deadline*/,
                    WaitMonitor& /*monitor*/) override {
    switch (change.kind) {
      case Change::Kind::kTaken:
        std::memset(weights_.data(), 0xa5, weights_.bytes());
        events_.push_back(fmt::format("taken {}", tag_name(tag)));
        return;
      case Change::Kind::kResumed:
        FAIL_CHECK("inference's memory was offloaded");
        return;
      case Change::Kind::kCommitted:
        events_.push_back(fmt::format("committed {} {}", tag_name(tag), change.version));
        compare();
        return;
    }
  }

 private:
  void compare() {
    uint64_t elements = 0;
    uint64_t wrong = 0;
    for_each_element(parts_, placed(Tag::kWeights),
                     [&](std::byte* at, uint32_t tensor, uint64_t index) {
                       const uint16_t bits = pattern(steps_, tensor, index);
                       wrong += std::memcmp(at, &bits, sizeof(bits)) == 0 ? 0 : 1;
                       ++elements;
                     });
    CHECK(elements > 0);
    CHECK(wrong == 0);
  }

  EngineParts parts_;
  const uint64_t& steps_;
  Events& events_;
  Region weights_;
};

/// The same with weights that lie in pieces of odd sizes, in other places whenever their memory has
/// been taken.
class ScatteredInference final : public PatternInference {
 public:
  ScatteredInference(const InferenceParts& parts, const uint64_t& steps, Events& events)
      : PatternInference(parts, kPieces * slot_bytes(parts.common.layout.bytes), steps, events),
        bytes_(parts.common.layout.bytes) {}

  [[nodiscard]] PlacedMemory placed(Tag tag) override {
    if (tag != Tag::kWeights) return {};
    const uint64_t slot = slot_bytes(bytes_);
    std::vector<MemorySegment> segments;
    uint64_t begin = 0;
    for (uint64_t piece = 0; piece < kPieces; ++piece) {
      // Nowhere at the end of a row, and in places that are nowhere near each other.
      const uint64_t end = piece + 1 == kPieces ? bytes_ : (piece + 1) * (bytes_ / kPieces) / 2 * 2;
      const uint64_t place = (piece * 3 + moves_ * 5) % kPieces;
      segments.push_back(
          {begin, region(tag)->data() + place * slot + 64 * moves_ + begin % 8, end - begin});
      begin = end;
    }
    return {"scattered weights", segments};
  }
  [[nodiscard]] uint64_t moves() const override { return moves_; }
  void after_change(Tag tag, const Change& change, const Deadline& deadline,
                    WaitMonitor& monitor) override {
    if (change.kind == Change::Kind::kTaken) ++moves_;
    PatternInference::after_change(tag, change, deadline, monitor);
  }

 private:
  static constexpr uint64_t kPieces = 7;
  static uint64_t slot_bytes(uint64_t bytes) { return round_up(bytes / kPieces + 1024, 256); }

  uint64_t bytes_;
  uint64_t moves_ = 0;
};

class PatternEngines final : public EngineFactory {
 public:
  [[nodiscard]] std::unique_ptr<TrainerEngine> make_trainer(
      const TrainerParts& parts) const override {
    return std::make_unique<PatternTrainer>(parts, events);
  }
  [[nodiscard]] std::unique_ptr<Engine> make_inference(const InferenceParts& parts) const override {
    if (scatters) return std::make_unique<ScatteredInference>(parts, steps, events);
    return std::make_unique<PatternInference>(parts, steps, events);
  }

  mutable Events events;  ///< Of this rank's engine.
  uint64_t steps = 0;     ///< That the trainers have taken when the next version is committed.
  bool scatters = false;  ///< Inference's weights.
};

/// Counts the training steps of the job.
class StepCounter final : public CycleObserver {
 public:
  explicit StepCounter(uint64_t& steps) : steps_(steps) {}
  void phase_started(const PhaseEvent& /*event*/) override {}
  void phase_finished(const PhaseEvent& event, double /*seconds*/, uint64_t /*bytes*/) override {
    if (event.phase == "train") ++steps_;
  }

 private:
  uint64_t& steps_;
};

Request request_for(bool offload) {
  Request request;
  request.job.model = "preset:tiny-dense";
  request.job.layers = 2;
  request.job.trainer = fmt::format("megatron:tp={}", job().size() / 2);
  request.job.backend = BackendKind::kHost;
  request.job.kv_cache_bytes = 1 << 20;
  request.job.timeout = Seconds{60};
  request.job.offload = offload;
  request.job.measure_limits = false;
  return request;
}

bool is_trainer() { return job().rank() < job().size() / 2; }

/// The phases of the last version: "offload trainer weights" and the like.
std::vector<std::string> phases_of(const VersionReport& version) {
  std::vector<std::string> phases;
  for (const auto& phase : version.phases) {
    phases.push_back(phase.phase + " " + phase.role + (phase.tag.empty() ? "" : " ") + phase.tag);
  }
  return phases;
}

}  // namespace

TEST_CASE("an engine of another kind goes through whole updates") {
  for (const bool offload : {true, false}) {
    CAPTURE(offload);
    PatternEngines engines;
    StepCounter counter(engines.steps);
    auto request = request_for(offload);
    request.command.versions = 2;
    const Report report = run_command(request, job(), counter, engines);
    REQUIRE_MESSAGE(!report.error, report.error->what());
    CHECK(report.committed_version == 2U);
    CHECK_FALSE(report.poisoned);
    CHECK(report.versions[0].digest->mismatched == 0);
    CHECK(report.versions[0].digest->model != report.versions[1].digest->model);
    Events wanted{"load"};
    for (const char* version : {"1", "2"}) {
      if (!is_trainer()) {
        if (offload || *version == '1') wanted.emplace_back("taken weights");
        wanted.push_back(std::string("committed weights ") + version);
        if (offload) wanted.emplace_back("release weights");
        continue;
      }
      if (offload) {
        wanted.emplace_back("release weights");
        wanted.emplace_back("resumed weights");
      }
      wanted.emplace_back("train");
    }
    CHECK(engines.events == wanted);
  }
}

TEST_CASE("weights in many pieces are brought to where they have moved between two updates") {
  for (const auto verify : {Verify::kFull, Verify::kOff}) {
    PatternEngines engines;
    engines.scatters = true;
    StepCounter counter(engines.steps);
    auto request = request_for(true);
    request.job.inference = job().size() > 2 ? "vllm:tp=2" : "sglang:tp=1";
    request.command.versions = 3;
    request.command.verify = verify;
    // Rounds of messages, and channels, cut at both ends.
    const bool through_channels = verify == Verify::kFull && job().size() > 2;
    request.job.exchange = through_channels ? ExchangeKind::kPeer : ExchangeKind::kAuto;
    const Report report = run_command(request, job(), counter, engines);
    REQUIRE_MESSAGE(!report.error, report.error->what());
    CHECK(report.committed_version == 3U);
  }
}

TEST_CASE("a session runs commands in any order, each from what the one before it left") {
  PatternEngines engines;
  StepCounter counter(engines.steps);
  const auto request = request_for(true);
  Report report = begin_report(request, job());
  Session session(request, job(), counter, report, engines);
  session.start();
  const auto run = [&](Command command) {
    session.run({.command = command, .versions = 1, .verify = Verify::kDigest});
    return phases_of(report.versions.back());
  };
  const auto begins_with = [](const std::vector<std::string>& phases,
                              const std::vector<std::string>& wanted) {
    return phases.size() >= wanted.size() &&
           std::equal(wanted.begin(), wanted.end(), phases.begin());
  };
  // The mapping that was made at the start has to go: what is mapped does not become free.
  CHECK(
      begins_with(run(Command::kOffload), {"unmap inference weights", "offload trainer weights"}));
  CHECK(!report.committed_version);
  // Offloaded weights are brought back and mapped before they are transferred.
  CHECK(begins_with(run(Command::kTransfer),
                    {"resume trainer weights", "map all weights", "digest trainer weights"}));
  CHECK(report.committed_version == 1U);
  CHECK(begins_with(run(Command::kTransfer), {"map all weights", "digest trainer weights"}));
  CHECK(report.committed_version == 2U);
  run(Command::kOffload);
  run(Command::kOffload);
  CHECK(report.versions.back().phases.front().bytes == 0);
  const auto resumed = run(Command::kResume);
  CHECK(begins_with(resumed, {"discard inference weights", "resume trainer optimizer",
                              "resume trainer weights"}));
  CHECK(begins_with(run(Command::kUpdate), {"map all weights", "digest trainer weights"}));
  CHECK(begins_with(run(Command::kUpdate), {"digest trainer weights"}));
  CHECK(engines.steps == 2);
  CHECK(report.committed_version == 4U);
  CHECK(report.versions.size() == 8);
  run(Command::kResume);
  CHECK(begins_with(run(Command::kTransfer), {"digest trainer weights"}));
  CHECK(report.committed_version == 5U);
  CHECK_FALSE(report.poisoned);
}

namespace {

/// A session whose commands are the halves of updates, and what its report says of the last.
class Halves {
 public:
  explicit Halves(bool offload) : request_(request_for(offload)), counter_(engines_.steps) {
    request_.command.command = Command::kHandOver;
    report_ = begin_report(request_, job());
    session_.emplace(request_, job(), counter_, report_, engines_);
    session_->start();
  }

  const VersionReport& run(const CommandOptions& command) {
    report_.versions.clear();
    session_->run(command);
    return report_.versions.back();
  }
  const VersionReport& hand_over(bool train = true) {
    return run({.command = Command::kHandOver, .train = train});
  }
  const VersionReport& take_back() { return run({.command = Command::kTakeBack}); }

  /// This rank's states by Tag, "-" where it holds none.
  [[nodiscard]] std::vector<std::string> states() {
    std::vector<std::string> states;
    const auto all = session_->statuses();
    for (const auto& memory : all[static_cast<size_t>(job().rank())].memory) {
      states.emplace_back(memory ? state_name(memory->state) : "-");
    }
    return states;
  }
  [[nodiscard]] const Report& report() const { return report_; }
  [[nodiscard]] ContentState content() const { return session_->content().state(); }

 private:
  Request request_;
  PatternEngines engines_;
  StepCounter counter_;
  Report report_;
  std::optional<Session> session_;
};

using States = std::vector<std::string>;

}  // namespace

TEST_CASE("an update in halves: trainers hand over, and take back, and neither is done twice") {
  Halves halves(true);
  const auto& first = halves.hand_over();
  CHECK(first.version == 1);
  CHECK(first.committed);
  CHECK(phases_of(first).front() == "train trainer");
  const States given = is_trainer() ? States{"offloaded", "-", "-"} : States{"resident", "-", "-"};
  CHECK(halves.states() == given);
  const auto digest = first.digest->model;

  // What inference serves already is neither brought nor given over again.
  const auto& again = halves.hand_over(/*train=*/false);
  CHECK(again.version == 1);
  CHECK(again.committed);
  for (const auto& phase : again.phases) CHECK(phase.bytes == 0);
  for (const auto& phase : phases_of(again)) CHECK(phase.find("transfer") == std::string::npos);
  CHECK(halves.states() == given);

  for (int time = 0; time < 2; ++time) {
    const auto& back = halves.take_back();
    CHECK(back.version == 1);
    CHECK((back.phases.size() > 2) == (time == 0));
    CHECK(halves.states() ==
          (is_trainer() ? States{"resident", "-", "-"} : States{"discarded", "-", "-"}));
    CHECK((halves.content() == ContentState::kEmpty));
  }
  // The weights are the same, but nobody holds them any more.
  const auto& brought = halves.hand_over(/*train=*/false);
  CHECK(brought.version == 2);
  CHECK(brought.digest->model == digest);
  // A step needs the trainer's memory back.
  const auto& trained = halves.hand_over();
  CHECK(trained.version == 3);
  CHECK(trained.digest->model != digest);
  CHECK(halves.states() == given);
  CHECK(halves.report().committed_version == 3U);
}

TEST_CASE("where no memory is given back the halves bring weights and no more") {
  Halves halves(false);
  for (uint64_t version = 1; version <= 3; ++version) {
    CHECK(halves.hand_over().version == version);
    CHECK(halves.states().front() == "resident");
    halves.take_back();
    CHECK(halves.states().front() == "resident");
    CHECK((halves.content() == ContentState::kCommitted));
  }
}

TEST_CASE("an offload and a resume can be of one role's memory of one tag") {
  Halves halves(true);
  halves.hand_over();
  const Scope inference{.role = Role::kInference, .tags = {true, false, false}};
  halves.run({.command = Command::kOffload, .scope = inference});
  CHECK(halves.states().front() == (is_trainer() ? "offloaded" : "discarded"));
  const Scope trainer{.role = Role::kTrainer, .tags = {true, true, true}};
  halves.run({.command = Command::kResume, .scope = trainer});
  CHECK(halves.states().front() == (is_trainer() ? "resident" : "discarded"));
  halves.run({.command = Command::kOffload, .scope = trainer});
  halves.run({.command = Command::kResume, .scope = inference});
  CHECK(halves.states().front() == (is_trainer() ? "offloaded" : "resident"));
  // Memory alone makes no weights.
  CHECK((halves.content() == ContentState::kEmpty));
  CHECK(halves.hand_over(/*train=*/false).version == 2);
}

TEST_CASE("a trainer whose weights are not in its region is refused, as nobody could map them") {
  const auto source = open_model("preset:tiny-dense", 1);
  const auto layout = make_trainer_layout("megatron:tp=1", source->catalogue(), 1)->rank_layout(0);
  const auto device = make_host_device(0, 1);
  const auto kernels = make_kernels(*device, 1);
  const auto queue = device->make_queue();
  LedgerWords words;
  MemoryLedger ledger(words, 1ULL << 30);
  ThreadPool threads(1);
  Events events;
  const TrainerParts parts{.common = {source->catalogue(), layout, *device, ledger, *kernels,
                                      *queue, job(), Seconds(60)},
                           .source = *source,
                           .weights_bytes = layout.bytes,
                           .optimizer = false,
                           .threads = threads};
  PatternTrainer whole(parts, events);
  CHECK_NOTHROW(TrainerMember(job(), whole, layout, *kernels, *queue, threads));
  CutTrainer cut(parts, events);
  CHECK_NOTHROW(TrainerMember(job(), cut, layout, *kernels, *queue, threads));
  cut.beyond = 8;
  std::string what;
  try {
    const TrainerMember member(job(), cut, layout, *kernels, *queue, threads);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    what = error.what();
  }
  CHECK(what.find("of the trainer's weights") != std::string::npos);
  CHECK(what.find("lie elsewhere than in") != std::string::npos);
}

TEST_CASE("an engine that declares other tensors than its layout has is refused by name") {
  const RankLayout layout{
      .parameters =
          {{.name = "a", .dtype = DType::kBf16, .rows = 4, .cols = 8, .offset_bytes = 0},
           {.name = "b", .dtype = DType::kF32, .rows = 2, .cols = 1, .offset_bytes = 256},
           {.name = "b", .dtype = DType::kF32, .rows = 2, .cols = 1, .offset_bytes = 512}},
      .shards = {},
      .bytes = 768};
  const auto declared = layout.parameters;
  check_declared(declared, layout);
  const auto refused = [&](const auto& change) -> std::string {
    auto changed = declared;
    change(changed);
    try {
      check_declared(changed, layout);
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::kRequest);
      return error.what();
    }
    return "";
  };
  using Tensors = std::vector<Parameter>;
  CHECK(refused([](Tensors& all) { std::swap(all[0], all[2]); }) == "");
  CHECK(refused([](Tensors& all) { all[0].rows = 8; }) ==
        "the engine declares a as BF16 8 x 8 at byte 0, its layout has it as BF16 4 x 8 at byte 0");
  CHECK(refused([](Tensors& all) { all[2].offset_bytes = 256; }) ==
        "the engine declares b as F32 2 x 1 at byte 256, its layout has it as F32 2 x 1 at byte "
        "512");
  CHECK(refused([](Tensors& all) { all.pop_back(); }) ==
        "the engine does not declare b, which its layout has as F32 2 x 1 at byte 512");
  CHECK(refused([](Tensors& all) { all.push_back({.name = "c"}); }) ==
        "the engine declares c as BF16 0 x 0 at byte 0, its layout has no such tensor");
}

}  // namespace awex::test
