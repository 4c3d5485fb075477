// The whole update against the oracle: after every transfer each byte of every rank's weights is
// the one that the model's source has, or that the optimizer's formula makes of it, at the place
// that the engines' own layouts give it.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cycle/session.hpp"
#include "engine/adamw.hpp"
#include "engine/adamw_math.hpp"
#include "layout/engines.hpp"
#include "model/checkpoint.hpp"
#include "model/convert.hpp"
#include "model/digest.hpp"
#include "support/mpi_job.hpp"
#include "support/oracle.hpp"
#include "support/random_model.hpp"

namespace awex::test {
namespace {

constexpr auto kPoison = std::byte{0xa5};

/// What one run does.
struct UpdateCase {
  std::string model;
  std::optional<uint64_t> layers;
  EngineCase trainer;
  EngineCase inference;
  uint64_t versions = 1;
  bool offload = true;
  ExchangeKind exchange = ExchangeKind::kAuto;

  [[nodiscard]] std::string text() const {
    return fmt::format("{}: {} -> {}, {} versions{}", model, trainer.spec(), inference.spec(),
                       versions, offload ? "" : ", no offload") +
           (exchange == ExchangeKind::kPeer ? ", by peers" : "");
  }
  [[nodiscard]] Request options() const {
    Request options;
    options.job.model = model;
    options.job.layers = layers;
    options.job.trainer = trainer.spec();
    options.job.inference = inference.spec();
    options.job.backend = BackendKind::kHost;
    options.job.optimizer = versions > 1;
    options.job.kv_cache_bytes = 1 << 20;
    options.command.versions = versions;
    options.job.timeout = Seconds{60};
    options.job.offload = offload;
    options.job.exchange = exchange;
    options.job.measure_limits = false;
    return options;
  }
};

/// The model's canonical values as they should be, step after step.
class ModelValues {
 public:
  explicit ModelValues(const WeightSource& source) : catalogue_(source.catalogue()) {
    for (uint32_t tensor = 0; tensor < catalogue_.tensors().size(); ++tensor) {
      auto& values = bytes_.emplace_back(catalogue_.tensors()[tensor].bytes());
      source.read(tensor, 0, values);
      auto& state = state_.emplace_back(catalogue_.tensors()[tensor].elements());
      for (uint64_t i = 0; i < state.size(); ++i) state[i].master = value(values, size(tensor), i);
    }
  }

  /// One step of AdamW on every element, one after the other.
  void train() {
    const AdamWStep step = make_step(AdamWSettings{}, ++steps_);
    for (uint32_t tensor = 0; tensor < state_.size(); ++tensor) {
      const uint64_t key = tensor_key(catalogue_.tensors()[tensor].name);
      for (uint64_t i = 0; i < state_[tensor].size(); ++i) {
        AdamWElement& element = state_[tensor][i];
        update_moments(step, generated_gradient(step.gradient_seed, key, i), element);
        update_master(step, std::sqrt(unbiased_variance(step, element)), element);
        put(bytes_[tensor], size(tensor), i, element.master);
      }
    }
  }

  [[nodiscard]] const std::byte* element(Identity id) const {
    return &bytes_.at(tensor_of(id)).at(index_of(id) * size(tensor_of(id)));
  }
  /// Bytes of an element.
  [[nodiscard]] uint64_t size(uint32_t tensor) const {
    return element_bytes(catalogue_.tensors().at(tensor).dtype);
  }

 private:
  [[nodiscard]] static float value(const std::vector<std::byte>& values, uint64_t size,
                                   uint64_t index) {
    if (size == sizeof(float)) {
      float result = 0;
      std::memcpy(&result, &values.at(index * sizeof(float)), sizeof(float));
      return result;
    }
    uint16_t bits = 0;
    std::memcpy(&bits, &values.at(index * sizeof(bits)), sizeof(bits));
    return bf16_to_f32(bits);
  }
  static void put(std::vector<std::byte>& values, uint64_t size, uint64_t index, float value) {
    if (size == sizeof(float)) {
      std::memcpy(&values.at(index * sizeof(float)), &value, sizeof(float));
      return;
    }
    const uint16_t bits = f32_to_bf16(value);
    std::memcpy(&values.at(index * sizeof(bits)), &bits, sizeof(bits));
  }

  const Catalogue& catalogue_;
  std::vector<std::vector<std::byte>> bytes_;     ///< By tensor.
  std::vector<std::vector<AdamWElement>> state_;  ///< By tensor, by element.
  uint64_t steps_ = 0;
};

/// Watches a run on one rank and compares its weights whenever they should be whole.
class Comparer final : public CycleObserver {
 public:
  Comparer(const UpdateCase& update, const WeightSource& source)
      : update_(update), catalogue_(source.catalogue()), values_(source) {}

  void phase_started(const PhaseEvent& event) override {
    learn_region();
    if (event.phase != "transfer") return;
    if (trains_) {
      compare(event);
    } else {
      poison(*event.region);
    }
  }

  void phase_finished(const PhaseEvent& event, double /*seconds*/, uint64_t /*bytes*/) override {
    if (event.phase == "train") values_.train();
    if (event.phase == "resume" && event.tag == "weights" && event.takes_part && trains_) {
      compare(event);
    }
    if (trains_ || event.tag != "weights") return;
    if (event.phase == "transfer" || event.phase == "commit") compare(event);
  }

  [[nodiscard]] uint64_t compared() const { return compared_; }
  [[nodiscard]] bool trains() const { return trains_; }

 private:
  /// What this rank holds; roles are known when the first phase begins.
  void learn_region() {
    if (!region_.empty()) return;
    const Peer& me = job().peers().at(static_cast<size_t>(job().rank()));
    trains_ = me.role == Role::kTrainer;
    const EngineCase& engine = trains_ ? update_.trainer : update_.inference;
    const auto ranks = static_cast<uint32_t>(job().size() / 2);
    const auto layout = trains_ ? make_trainer_layout(engine.spec(), catalogue_, ranks)
                                : make_inference_layout(engine.spec(), catalogue_, ranks);
    region_ = expected_region(expected_contents(engine, catalogue_, me.role_rank, ranks),
                              layout->rank_layout(me.role_rank));
  }

  /// Bytes that the transfer forgets are then not right by chance.
  void poison(Region& region) const {
    for (uint64_t i = 0; i < region_.size(); ++i) {
      if (region_[i] == kPadding) continue;
      region.data()[i] = kPoison;
    }
  }

  void compare(const PhaseEvent& event) {
    ++compared_;
    REQUIRE(event.region->bytes() == region_.size());
    for (uint64_t i = 0; i < region_.size(); ++i) {
      if (region_[i] == kRest || holds(event.region->data() + i, region_[i])) continue;
      FAIL_CHECK(fmt::format("{}: version {}, {} {}: byte {} is not {}", update_.text(),
                             event.version, event.role, event.phase, i,
                             describe_identity(catalogue_, region_[i])));
      return;
    }
  }

  /// Padding must be zero.
  [[nodiscard]] bool holds(const std::byte* got, Identity want) const {
    if (want == kPadding) return *got == std::byte{0};
    return std::memcmp(got, values_.element(want), values_.size(tensor_of(want))) == 0;
  }

  const UpdateCase& update_;
  const Catalogue& catalogue_;
  ModelValues values_;
  std::vector<Identity> region_;  ///< By byte.
  bool trains_ = false;
  uint64_t compared_ = 0;
};

/// False when the run failed, on every rank alike: the job cannot go on then.
bool run_update(const UpdateCase& update) {
  CAPTURE(update.text());
  const auto source = open_model(update.model, update.layers);
  Comparer comparer(update, *source);
  const Report report = run_command(update.options(), job(), comparer);
  if (report.error) {
    FAIL_CHECK(report.error->what());
    return false;
  }
  CHECK(report.committed_version == update.versions);
  const uint64_t times_a_version = !comparer.trains() || update.offload ? 2 : 1;
  CHECK(comparer.compared() == times_a_version * update.versions);
  return true;
}

/// The tps to try: all that divide the devices.
std::vector<uint64_t> tensor_parallel_sizes() {
  std::vector<uint64_t> sizes;
  for (const uint64_t tp : {1, 2, 3, 4, 6}) {
    if (static_cast<uint64_t>(job().size()) / 2 % tp == 0) sizes.push_back(tp);
  }
  return sizes;
}

/// fp32 weights in [-0.5, 0.5), a hash of tensor and index.
class HashedWeights final : public WeightSource {
 public:
  explicit HashedWeights(const ModelConfig& config)
      : catalogue_(make_catalogue("hashed", config)) {}

  [[nodiscard]] const Catalogue& catalogue() const override { return catalogue_; }
  void read(uint32_t tensor, uint64_t first, std::span<std::byte> out) const override {
    for (uint64_t i = 0; i < out.size() / sizeof(float); ++i) {
      const uint64_t hash = mix64(identity_of(tensor, first + i));
      const float value = static_cast<float>(hash >> 40) * 0x1p-24F - 0.5F;
      std::memcpy(&out[i * sizeof(float)], &value, sizeof(float));
    }
  }

 private:
  Catalogue catalogue_;
};

/// A checkpoint with fewer KV heads than some tp, heads that a rank's QKV rows cut in the middle,
/// and fp32 weights: what no preset has. Rank 0 writes it for all.
class UnevenCheckpoint {
 public:
  UnevenCheckpoint() {
    std::array<char, 64> pattern{"/tmp/awex-update-oracle-XXXXXX"};
    if (job().rank() == 0) {
      REQUIRE(::mkdtemp(pattern.data()) != nullptr);
      ThreadPool pool(1);
      write_checkpoint(HashedWeights(config()), model_in(pattern.data()), kDefaultShardBytes, pool);
    }
    directory_ = job().all_gather_value(pattern, "the checkpoint's directory").front().data();
  }
  UnevenCheckpoint(const UnevenCheckpoint&) = delete;
  UnevenCheckpoint& operator=(const UnevenCheckpoint&) = delete;
  UnevenCheckpoint(UnevenCheckpoint&&) = delete;
  UnevenCheckpoint& operator=(UnevenCheckpoint&&) = delete;
  ~UnevenCheckpoint() {
    std::error_code ignored;
    if (job().rank() == 0) std::filesystem::remove_all(directory_, ignored);
  }

  [[nodiscard]] std::string model() const { return model_in(directory_); }

 private:
  [[nodiscard]] static std::string model_in(const std::string& directory) {
    return directory + "/model";
  }
  [[nodiscard]] static ModelConfig config() {
    ModelConfig config;
    config.family = "qwen2";
    config.dtype = DType::kF32;
    config.layers = 2;
    config.hidden = 7;
    config.heads = 12;
    config.kv_heads = 2;
    config.head_dim = 6;
    config.intermediate = 24;
    config.vocab = 130;
    config.attention_bias = true;
    return config;
  }

  std::string directory_;
};

}  // namespace

TEST_CASE("every mix of tensor parallel sizes delivers every byte") {
  const std::vector<std::string> models{"preset:tiny-dense", "preset:tiny-moe",
                                        "preset:tiny-dense-bias", "preset:tiny-dense-tied"};
  size_t turn = 0;
  for (const uint64_t trainer : tensor_parallel_sizes()) {
    for (const uint64_t inference : tensor_parallel_sizes()) {
      const UpdateCase update{.model = models[turn++ % models.size()],
                              .layers = 1,
                              .trainer = {"megatron", trainer},
                              .inference = {"sglang", inference}};
      if (!run_update(update)) return;
    }
  }
}

TEST_CASE("whole models on either side") {
  const uint64_t tp = tensor_parallel_sizes().back();
  for (const UpdateCase& update : {UpdateCase{"preset:tiny-moe", 1, {"hf"}, {"sglang", tp}},
                                   UpdateCase{"preset:tiny-dense", 1, {"megatron", tp}, {"hf"}}}) {
    if (!run_update(update)) return;
  }
}

TEST_CASE("trained weights arrive, also when they were offloaded in between") {
  const uint64_t tp = tensor_parallel_sizes().back();
  for (const bool offload : {true, false}) {
    if (!run_update({"preset:tiny-moe", 1, {"megatron", tp}, {"sglang", 1}, 3, offload})) return;
    if (!run_update({"preset:tiny-dense", 1, {"megatron", 1}, {"sglang", tp}, 3, offload})) return;
  }
}

TEST_CASE("every byte arrives that is written into the receivers' memory, version after version") {
  const uint64_t tp = tensor_parallel_sizes().back();
  for (UpdateCase update :
       {UpdateCase{"preset:tiny-moe", 1, {"megatron", tp}, {"sglang", 1}, 2},
        UpdateCase{"preset:tiny-dense", 1, {"megatron", 1}, {"sglang", tp}, 2, false}}) {
    update.exchange = ExchangeKind::kPeer;
    if (!run_update(update)) return;
  }
}

TEST_CASE("heads cut in the middle and KV heads that ranks share") {
  const UnevenCheckpoint checkpoint;
  const auto source = open_model(checkpoint.model(), {});
  for (const uint64_t trainer : tensor_parallel_sizes()) {
    for (const uint64_t inference : tensor_parallel_sizes()) {
      const UpdateCase update{.model = checkpoint.model(),
                              .layers = {},
                              .trainer = {"megatron", trainer},
                              .inference = {"sglang", inference},
                              .versions = trainer == inference ? 2U : 1U};
      const auto ranks = static_cast<uint64_t>(job().size()) / 2;
      if (!divides(update.trainer, source->catalogue(), ranks)) continue;
      if (!divides(update.inference, source->catalogue(), ranks)) continue;
      if (!run_update(update)) return;
    }
  }
}

TEST_CASE("pipelines, experts and latent attention deliver every byte") {
  const auto ranks = static_cast<uint64_t>(job().size()) / 2;
  const std::string all = std::to_string(ranks);
  const std::vector<EngineCase> trainers{{"megatron", 1, {{"pp", all}}},
                                         {"megatron", 1, {{"ep", all}, {"etp", "1"}}},
                                         {"megatron", ranks, {{"ep", all}, {"etp", "1"}}},
                                         {"fsdp", 1, {{"shard", all}}}};
  const std::vector<EngineCase> engines{
      {"sglang", ranks, {{"ep", all}}},
      {"sglang", ranks, {{"attn_dp", all}, {"fuse_shared", "on"}}},
      {"vllm", 1, {{"dp", all}, {"ep", "on"}}},
      {"vllm", 1, {{"pp", all}}}};
  size_t turn = 0;
  size_t run = 0;
  for (const char* model : {"preset:tiny-mla", "preset:tiny-glm", "preset:tiny-moe"}) {
    const std::optional<uint64_t> layers = std::max<uint64_t>(ranks, 2);
    const auto source = open_model(model, layers);
    for (const EngineCase& trainer : trainers) {
      EngineCase inference = engines[turn++ % engines.size()];
      inference.options["router_dtype"] = "bf16";  // bytes are compared with the trainer's
      if (!divides(trainer, source->catalogue(), ranks)) continue;
      if (!divides(inference, source->catalogue(), ranks)) continue;
      const bool trains = trainer.engine == "fsdp";
      if (!run_update({.model = model,
                       .layers = layers,
                       .trainer = trainer,
                       .inference = inference,
                       .versions = trains ? 2U : 1U})) {
        return;
      }
      ++run;
    }
    ++turn;
  }
  CHECK(run > 0);
}

}  // namespace awex::test
