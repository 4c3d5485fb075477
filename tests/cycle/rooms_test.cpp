// The values that a job is settled in and what is decided from states, made without MPI and without
// a device.
#include <doctest/doctest.h>

#include <optional>
#include <string>
#include <vector>

#include "cycle/budget.hpp"
#include "cycle/content.hpp"
#include "cycle/hand_over.hpp"
#include "cycle/readiness.hpp"
#include "layout/spec.hpp"
#include "model/weights.hpp"

namespace awex {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kGiB = 1 << 30;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Two devices of a node, whose ranks have the device's number as their role rank.
Placement two_devices() { return {{0, 1}, {0, 1}, {0, 0}}; }

HeldModel model_of(const char* trainer, const char* inference) {
  return hold_model(open_model("preset:tiny-dense", 1), trainer, inference, 2);
}

uint64_t bytes_of(const std::vector<Piece>& pieces, uint32_t source, uint32_t target) {
  uint64_t bytes = 0;
  for (const auto& piece : pieces) {
    if (piece.source == source && piece.target == target) bytes += piece.bytes();
  }
  return bytes;
}

}  // namespace

TEST_CASE("a model's name is a directory or a preset, whatever they are called") {
  CHECK(ModelName().empty());
  CHECK_FALSE(ModelName("preset:").empty());
  CHECK(ModelName("preset:tiny-dense").is_preset());
  CHECK(ModelName("preset:tiny-dense").name() == "tiny-dense");
  CHECK_FALSE(ModelName("dir/preset:tiny-dense").is_preset());
  CHECK(ModelName("dir/preset:tiny-dense").name() == "dir/preset:tiny-dense");
}

TEST_CASE("a spec with another number keeps all else as it was written") {
  CHECK(EngineSpec("megatron").with("tp", 2).text() == "megatron:tp=2");
  CHECK(EngineSpec("megatron:tp=8,pp=2").with("tp", 2).text() == "megatron:tp=2,pp=2");
  CHECK(EngineSpec("megatron:etp=4,tp=8").with("tp", 2).text() == "megatron:etp=4,tp=2");
  CHECK(EngineSpec("megatron:etp=4").with("tp", 2).text() == "megatron:etp=4,tp=2");
  CHECK(EngineSpec("megatron:pp=2,tp=16").with("tp", 4).count("tp") == 4U);
}

TEST_CASE("a model is laid out for both roles, and two layouts have two fingerprints") {
  const auto one = model_of("megatron:tp=2", "sglang:tp=1");
  const auto other = model_of("megatron:tp=1", "sglang:tp=1");
  CHECK(one.trainer->describe() == "megatron:tp=2");
  CHECK(one.inference->describe() == "sglang:tp=1");
  CHECK(one.fingerprint != other.fingerprint);
  CHECK(one.fingerprint == model_of("megatron:tp=2", "sglang:tp=1").fingerprint);
  for (const uint64_t count : one.inference_replicas) CHECK(count == 2);
  CHECK_THROWS_WITH_AS(model_of("megatorn:tp=2", "sglang:tp=1"),
                       "\"megatorn\" is no trainer engine", Error);
}

TEST_CASE("a device's part of the plan is what its inference rank receives and its trainer sends") {
  // Both trainers hold halves that both engine instances want whole.
  auto hand_over = plan_hand_over(model_of("megatron:tp=2", "sglang:tp=1"), two_devices(), {0, 0});
  const auto& pieces = hand_over.plan.pieces;
  const uint64_t own = bytes_of(pieces, 0, 0);
  CHECK(own > 0);
  CHECK(bytes_of(pieces, 1, 0) > 0);
  CHECK(bytes_of(pieces, 0, 1) > 0);
  CHECK(bytes_of(pieces, 1, 1) == 0);
  CHECK(own + bytes_of(pieces, 1, 0) == hand_over.model.held->bytes());
  CHECK(hand_over.trainer_here.bytes == hand_over.model.trainer->rank_layout(0).bytes);
  CHECK(hand_over.inference_here.bytes == hand_over.model.inference->rank_layout(0).bytes);
  prove_hand_over(hand_over, 0);
  // A plan that leaves out a piece is found out.
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].target != 0) continue;
    hand_over.plan.pieces.erase(hand_over.plan.pieces.begin() + static_cast<ptrdiff_t>(i));
    break;
  }
  CHECK_THROWS_AS(prove_hand_over(hand_over, 0), Error);
}

TEST_CASE("a GPU needs what its pairs need together, and is refused by whose GPU has less") {
  DeviceNeeds needs;
  needs.trainer_weights = 4 * kMiB;
  needs.optimizer = 24 * kMiB;
  needs.inference_weights = 4 * kMiB;
  GpuNeeds gpu;
  gpu.free = kGiB;
  gpu.add(needs, true);
  CHECK(gpu.peak == 28 * kMiB);
  CHECK(gpu.pinned == 28 * kMiB);
  CHECK(gpu.moment == "the train step");
  gpu.add(needs, true);
  CHECK(gpu.peak == 56 * kMiB);
  CHECK_FALSE(lack_of_memory(gpu, {std::nullopt, true}, "rank 3"));
  CHECK_FALSE(lack_of_memory(gpu, {56 * kMiB, true}, "rank 3"));
  const auto lack = lack_of_memory(gpu, {56 * kMiB - 1, true}, "rank 3");
  REQUIRE(lack);
  CHECK(lack->code() == ExitCode::kRequest);
  CHECK(contains(lack->what(), "the GPU of rank 3 needs 58.7 MB in the train step"));
  CHECK(contains(lack->what(), "by --gpu-memory"));
  CHECK(contains(lack->what(),
                 "the trainer's weights are 8.39 MB, its optimizer state 50.3 MB, "
                 "inference's weights 8.39 MB, its KV cache 0 B"));
  CHECK(contains(lack->hint(), "memory="));
  gpu.free = 56 * kMiB - 1;
  const auto used = lack_of_memory(gpu, {std::nullopt, false}, "rank 3");
  REQUIRE(used);
  CHECK(contains(used->what(), "free"));
  CHECK(used->hint() == "leave out --no-offload");
}

TEST_CASE("what may be held is what was asked for, or what is free but for the driver's part") {
  GpuNeeds gpu;
  gpu.peak = 3 * kGiB;
  gpu.pinned = kGiB;
  gpu.free = 10 * kGiB;
  // The driver takes 1 GiB and 8 bytes for each 4 KiB of pinned memory.
  CHECK(gpu_budget(gpu, {}, BackendKind::kCuda, 2) == 9 * kGiB - 2 * kMiB);
  CHECK(gpu_budget(gpu, {}, BackendKind::kHost, 1) == 5 * kGiB);
  CHECK(gpu_budget(gpu, {4 * kGiB, true}, BackendKind::kCuda, 1) == 4 * kGiB);
  CHECK(gpu_budget(gpu, {20 * kGiB, true}, BackendKind::kCuda, 1) == 10 * kGiB);
  // Never less than the least.
  CHECK(gpu_budget(gpu, {}, BackendKind::kHost, 4) == 3 * kGiB);
  CHECK(gpu_budget(gpu, {kGiB, true}, BackendKind::kCuda, 1) == 3 * kGiB);
}

TEST_CASE("weights are committed only after a transfer, and stay poisoned until then") {
  Content content;
  CHECK((content.state() == ContentState::kEmpty));
  CHECK_THROWS_WITH_AS(content.commit(1),
                       "cannot move the content of inference's weights from empty to committed",
                       Error);
  content.discard();
  CHECK((content.state() == ContentState::kEmpty));
  content.poison();
  content.discard();
  content.poison();
  CHECK((content.state() == ContentState::kPoisoned));
  CHECK(!content.committed());
  content.commit(3);
  CHECK((content.state() == ContentState::kCommitted));
  CHECK(content.committed() == 3U);
  CHECK_THROWS_AS(content.commit(4), Error);
  content.discard();
  CHECK((content.state() == ContentState::kEmpty));
  CHECK(content.committed() == 3U);
  content.poison();
  CHECK((content.state() == ContentState::kPoisoned));
  CHECK(content.committed() == 3U);
}

TEST_CASE("ranks that stopped between two moves come to one content") {
  const Content empty;
  Content poisoned;
  poisoned.poison();
  Content first = poisoned;
  first.commit(1);
  Content second = first;
  second.poison();
  Content given_back = first;
  given_back.discard();
  const auto state_of = [](const std::vector<Content>& ranks) {
    std::vector<Content> after = ranks;
    for (auto& one : after) one.reconcile(ranks);
    for (const auto& one : after) CHECK((one == after.front()));
    return std::pair(after.front().state(), after.front().committed());
  };
  using State = ContentState;
  CHECK((state_of({first, first}) == std::pair(State::kCommitted, std::optional<uint64_t>(1))));
  CHECK((state_of({first, given_back}) == std::pair(State::kEmpty, std::optional<uint64_t>(1))));
  CHECK((state_of({second, first}) == std::pair(State::kPoisoned, std::optional<uint64_t>(1))));
  CHECK((state_of({empty, poisoned}) == std::pair(State::kPoisoned, std::optional<uint64_t>())));
  // Only some ranks have learnt that the version is right.
  CHECK((state_of({first, poisoned}) == std::pair(State::kPoisoned, std::optional<uint64_t>())));
  second.commit(2);
  CHECK((state_of({second, first}) == std::pair(State::kPoisoned, std::optional<uint64_t>(1))));
}

TEST_CASE("a transfer that failed before its first byte leaves what was there") {
  Content content;
  content.poison();
  content.roll_back();
  CHECK((content.state() == ContentState::kEmpty));
  content.poison();
  content.commit(1);
  content.roll_back();
  CHECK((content.state() == ContentState::kCommitted));
  content.poison();
  content.roll_back();
  CHECK((content.state() == ContentState::kCommitted));
  CHECK(content.committed() == 1U);
  // Another one has written before.
  content.poison();
  content.poison();
  content.roll_back();
  CHECK((content.state() == ContentState::kPoisoned));
}

TEST_CASE("of the moves between contents exactly these are legal") {
  const auto states = {ContentState::kEmpty, ContentState::kPoisoned, ContentState::kCommitted};
  std::string legal;
  for (const auto from : states) {
    for (const auto to : states) {
      if (is_legal_move(from, to)) {
        legal += std::string(content_name(from)) + ">" + content_name(to) + " ";
      }
    }
  }
  CHECK(legal ==
        "empty>empty empty>poisoned poisoned>poisoned poisoned>committed committed>empty "
        "committed>poisoned ");
}

namespace {

using State = RegionState;

Holding trainer_with(State weights, std::optional<State> optimizer) {
  Holding holding{.role = Role::kTrainer};
  holding.regions = {weights, optimizer, std::nullopt};
  return holding;
}

Holding inference_with(State weights, State kv_cache, bool has_mapped) {
  Holding holding{.role = Role::kInference, .has_mapped = has_mapped};
  holding.regions = {weights, std::nullopt, kv_cache};
  return holding;
}

const Command kCommands[] = {Command::kUpdate, Command::kOffload, Command::kTransfer,
                             Command::kResume};

}  // namespace

TEST_CASE("a job that has just begun lacks nothing but what an offload must not have") {
  const std::vector<Holding> ranks{trainer_with(State::kResident, State::kResident),
                                   inference_with(State::kDiscarded, State::kDiscarded, true)};
  for (const Command command : kCommands) {
    Preparation nothing;
    nothing.unmap = command == Command::kOffload;
    CHECK(preparation_for(command, ranks) == nothing);
  }
}

TEST_CASE("what was handed over comes back before it is used, and inference makes room") {
  const std::vector<Holding> ranks{trainer_with(State::kResident, State::kResident),
                                   inference_with(State::kResident, State::kResident, false),
                                   trainer_with(State::kOffloaded, State::kOffloaded),
                                   inference_with(State::kDiscarded, State::kDiscarded, false)};
  CHECK(preparation_for(Command::kUpdate, ranks) == Preparation{.discard_kv_cache = true,
                                                                .discard_weights = true,
                                                                .restore_optimizer = true,
                                                                .restore_weights = true,
                                                                .map = true});
  // A transfer needs no optimizer, and inference's weights have room.
  CHECK(preparation_for(Command::kTransfer, ranks) ==
        Preparation{.discard_kv_cache = true, .restore_weights = true, .map = true});
  CHECK(preparation_for(Command::kHandOver, ranks) == preparation_for(Command::kTransfer, ranks));
  CHECK(preparation_for(Command::kOffload, ranks) == Preparation{});
  CHECK(preparation_for(Command::kResume, ranks) ==
        Preparation{.discard_kv_cache = true, .discard_weights = true});
}

TEST_CASE("inference's weights go where the trainers' come beside their optimizer's memory") {
  auto trainer = trainer_with(State::kOffloaded, State::kResident);
  const auto inference = inference_with(State::kResident, State::kDiscarded, false);
  CHECK_FALSE(preparation_for(Command::kTransfer, std::vector{trainer, inference}).discard_weights);
  trainer.held_bytes.at(static_cast<size_t>(Tag::kOptimizer)) = 1;
  CHECK(preparation_for(Command::kTransfer, std::vector{trainer, inference}) ==
        Preparation{.discard_weights = true, .restore_weights = true, .map = true});
}

TEST_CASE("old chunks are let go before new ones are mapped, on all ranks or none") {
  const auto trainer = trainer_with(State::kResident, std::nullopt);
  const std::vector<Holding> ranks{
      trainer, inference_with(State::kDiscarded, State::kDiscarded, true), trainer,
      inference_with(State::kDiscarded, State::kDiscarded, false)};
  CHECK(preparation_for(Command::kTransfer, ranks) == Preparation{.unmap = true, .map = true});
}

TEST_CASE("trainers that have taken fewer steps catch up before weights are brought") {
  auto ahead = trainer_with(State::kResident, State::kOffloaded);
  ahead.trained = 3;
  auto behind = ahead;
  behind.trained = 2;
  const auto inference = inference_with(State::kResident, State::kDiscarded, true);
  const std::vector<Holding> ranks{behind, inference, ahead, inference};
  for (const Command command : {Command::kUpdate, Command::kTransfer}) {
    CHECK(preparation_for(command, ranks) ==
          Preparation{.discard_weights = true, .restore_optimizer = true, .train_to = 3});
  }
  CHECK(preparation_for(Command::kOffload, ranks).train_to == 0);
  CHECK(preparation_for(Command::kUpdate, std::vector{ahead, inference, ahead}).train_to == 0);
}

TEST_CASE("an engine that takes its memory for released is told that it is back") {
  auto trainer = trainer_with(State::kResident, std::nullopt);
  trainer.is_released.at(static_cast<size_t>(Tag::kWeights)) = true;
  const std::vector<Holding> ranks{trainer,
                                   inference_with(State::kDiscarded, State::kDiscarded, true)};
  CHECK(preparation_for(Command::kUpdate, ranks) ==
        Preparation{.unmap = true, .restore_weights = true, .map = true});
}

TEST_CASE("what failed midway goes on, unless it must return first") {
  auto moving = trainer_with(State::kOffloading, State::kOffloading);
  const auto served = inference_with(State::kResident, State::kResident, true);
  CHECK(preparation_for(Command::kOffload, std::vector{moving, served}) ==
        Preparation{.unmap = true});
  CHECK(preparation_while_serving(std::vector{moving, served}) == Preparation{.unmap = true});
  auto half = trainer_with(State::kResident, State::kOffloading);
  const auto away = inference_with(State::kDiscarded, State::kDiscarded, true);
  CHECK(preparation_for(Command::kHandOver, std::vector{half, away}) == Preparation{});
  moving.must_return = {true, true, false};
  half.must_return = {false, true, false};
  CHECK(preparation_for(Command::kOffload, std::vector{moving, away}) ==
        Preparation{.unmap = true, .restore_optimizer = true, .restore_weights = true});
  CHECK(preparation_for(Command::kHandOver, std::vector{half, away}) ==
        Preparation{.restore_optimizer = true});
  // Inference keeps the weights that it serves.
  CHECK(preparation_while_serving(std::vector{moving, served}) ==
        Preparation{.unmap = true,
                    .discard_kv_cache = true,
                    .restore_optimizer = true,
                    .restore_weights = true});
}

TEST_CASE("the trainers' memory comes before inference's goes where each GPU has room for it") {
  auto trainer = trainer_with(State::kOffloaded, State::kOffloaded);
  trainer.lacking_bytes = {40, 60, 0};
  trainer.room_bytes = 150;
  trainer.free_bytes = trainer.total_bytes = 80 * kGiB;
  auto inference = inference_with(State::kResident, State::kResident, false);
  inference.room_bytes = 100;
  inference.free_bytes = inference.total_bytes = 80 * kGiB;
  const std::vector<Holding> pair{trainer, inference};
  const std::vector<uint32_t> one{0, 0};
  CHECK(has_room_for_trainers(pair, one));
  CHECK(preparation_to_train(pair, TakenBack::kAll) ==
        Preparation{.restore_optimizer = true, .restore_weights = true, .map = true});
  CHECK(preparation_to_train(pair, TakenBack::kWeights) ==
        Preparation{.restore_weights = true, .map = true});
  auto narrow = pair;
  narrow[1].room_bytes = 99;
  CHECK(!has_room_for_trainers(narrow, one));
  narrow[0].lacking_bytes = {};  // all is there
  narrow[1].free_bytes = 0;
  CHECK(has_room_for_trainers(narrow, one));
  auto shared = pair;
  shared[1].free_bytes = kGiB + 99;  // other processes are on the GPU, too, and take more
  CHECK(!has_room_for_trainers(shared, one));
  // Two pairs on one GPU want twice as much of it.
  const std::vector<Holding> both{trainer, inference, trainer, inference};
  CHECK(has_room_for_trainers(both, std::vector<uint32_t>{0, 0, 1, 1}));
  CHECK(!has_room_for_trainers(both, std::vector<uint32_t>{0, 0, 0, 0}));
}

TEST_CASE("trainers give as much of their optimizer's memory as inference lacks, and no more") {
  auto trainer = trainer_with(State::kResident, State::kResident);
  auto& optimizer = trainer.held_bytes.at(static_cast<size_t>(Tag::kOptimizer));
  optimizer = 48 * kGiB;
  trainer.room_bytes = kGiB;
  trainer.free_bytes = 20 * kGiB;
  trainer.total_bytes = 80 * kGiB;
  auto inference = inference_with(State::kDiscarded, State::kDiscarded, true);
  inference.lacking_bytes = {8 * kGiB, 0, 4 * kGiB};
  inference.room_bytes = kGiB;
  inference.free_bytes = 20 * kGiB;
  inference.total_bytes = 80 * kGiB;
  const std::vector<uint32_t> one{0, 0};
  using Bytes = std::vector<uint64_t>;
  CHECK(bytes_to_make_room(std::vector{trainer, inference}, one) == Bytes{11 * kGiB, 0});
  // By the books there is room; of what is free an eighth of the GPU is inference's to allocate.
  trainer.room_bytes = inference.room_bytes = 100 * kGiB;
  CHECK(bytes_to_make_room(std::vector{trainer, inference}, one) == Bytes{2 * kGiB, 0});
  trainer.free_bytes = inference.free_bytes = 22 * kGiB;
  CHECK(bytes_to_make_room(std::vector{trainer, inference}, one) == Bytes{0, 0});
  // What a rank of the GPU finds counts, and its optimizer's memory is all that can be given.
  inference.free_bytes = 3 * kGiB;
  CHECK(bytes_to_make_room(std::vector{trainer, inference}, one) == Bytes{19 * kGiB, 0});
  optimizer = 9 * kGiB;
  CHECK(bytes_to_make_room(std::vector{trainer, inference}, one) == Bytes{9 * kGiB, 0});
  // Inference has all, and is to generate.
  auto ready = inference;
  ready.lacking_bytes = {};
  CHECK(bytes_to_make_room(std::vector{trainer, ready}, one) == Bytes{7 * kGiB, 0});
  // Two pairs on one GPU: the first gives what it has, the second the rest. One of its own gives
  // less.
  const std::vector both{trainer, trainer, inference, inference};
  optimizer = 100 * kGiB;
  const std::vector unlike{both[0], trainer, inference, inference};
  CHECK(bytes_to_make_room(unlike, std::vector<uint32_t>{0, 0, 0, 0}) ==
        Bytes{9 * kGiB, 22 * kGiB, 0, 0});
  CHECK(bytes_to_make_room(unlike, std::vector<uint32_t>{0, 1, 0, 1}) ==
        Bytes{9 * kGiB, 19 * kGiB, 0, 0});
}

}  // namespace awex
