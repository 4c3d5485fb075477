#include "model/checkpoint.hpp"

#include <doctest/doctest.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "model/generated_source.hpp"
#include "model/presets.hpp"
#include "model/refusal.hpp"
#include "model/safetensors.hpp"
#include "support/temporary_directory.hpp"

using namespace awex;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kSingle = "model.safetensors";

ModelConfig small(bool tied = false) {
  auto config = preset_config(tied ? "tiny-dense-tied" : "tiny-dense");
  config.layers = 3;
  return config;
}

json read_json(const fs::path& path) { return json::parse(std::ifstream(path)); }

/// A checkpoint directory to damage.
class CheckpointFixture {
 public:
  void write(const ModelConfig& config, uint64_t max_shard_bytes) {
    write_checkpoint(*generate_weights(make_catalogue("m", config)), path(), max_shard_bytes,
                     pool_);
  }
  void write_sharded() { write(small(), 250'000); }
  void write_single() { write(small(), kDefaultShardBytes); }

  [[nodiscard]] fs::path path() const { return root_.path() / "model"; }
  [[nodiscard]] std::unique_ptr<WeightSource> open() const {
    return open_checkpoint(path(), std::nullopt);
  }
  void refuse(std::initializer_list<const char*> words) const {
    test::check_refused([&] { (void)open(); }, words);
  }

  /// Writes `file` anew with the tensors that it has after `change`, all bytes zero.
  void rewrite(const char* file,
               const std::function<void(std::vector<SafetensorsEntry>&)>& change) {
    auto entries = SafetensorsFile(path() / file).entries();
    change(entries);
    fs::remove(path() / file);
    const SafetensorsWriter writer(path() / file, entries);
    for (size_t i = 0; i < entries.size(); ++i) {
      uint64_t bytes = element_bytes(entries[i].dtype);
      for (const auto extent : entries[i].shape) bytes *= extent;
      writer.write(i, 0, std::vector<std::byte>(bytes));
    }
  }

  void change_json(const char* file, const std::function<void(json&)>& change) {
    auto object = read_json(path() / file);
    change(object);
    test::write_file(path() / file, object.dump());
  }

 protected:
  test::TemporaryDirectory root_;
  ThreadPool pool_{2};
};

}  // namespace

TEST_CASE_FIXTURE(CheckpointFixture, "a checkpoint holds what its source holds, in any sharding") {
  for (const uint64_t max_shard_bytes : {uint64_t{1}, uint64_t{250'000}, kDefaultShardBytes}) {
    CAPTURE(max_shard_bytes);
    for (const char* preset :
         {"preset:tiny-moe", "preset:tiny-dense-bias", "preset:tiny-mla", "preset:tiny-glm"}) {
      const auto source = open_model(preset, 2);
      write_checkpoint(*source, path(), max_shard_bytes, pool_);
      const auto read = open();
      CHECK(read->catalogue().model_name() == "model");
      CHECK(read->catalogue().config() == source->catalogue().config());
      CHECK(read->catalogue().fingerprint() == source->catalogue().fingerprint());
      CHECK(digest_source(*read, pool_) == digest_source(*source, pool_));
      fs::remove_all(path());
    }
  }
}

TEST_CASE_FIXTURE(CheckpointFixture, "shards keep to their size, and one shard needs no index") {
  write_sharded();
  uint64_t shards = 0;
  for (const auto& file : fs::directory_iterator(path())) {
    if (file.path().extension() != ".safetensors") continue;
    ++shards;
    CHECK(fs::file_size(file) < 250'000 + 10'000);
  }
  CHECK(shards > 3);
  const auto index = read_json(path() / kIndex);
  CHECK(index["metadata"]["total_size"] == open()->catalogue().bytes());
  fs::remove_all(path());
  write_single();
  CHECK(fs::exists(path() / kSingle));
  CHECK_FALSE(fs::exists(path() / kIndex));
}

TEST_CASE_FIXTURE(CheckpointFixture, "a checkpoint keeps its first layers") {
  write_sharded();
  const auto kept = open_checkpoint(path(), 2);
  CHECK(kept->catalogue().config().layers == 2);
  const auto source = open_model("preset:tiny-dense", 2);
  CHECK(digest_source(*kept, pool_) == digest_source(*source, pool_));
  test::check_refused([&] { (void)open_checkpoint(path(), 4); }, {"--layers 4", "3 layers"});
  test::check_refused([&] { (void)open_checkpoint(path(), 0); }, {"--layers 0"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "layers for multi-token prediction are ignored") {
  auto config = preset_config("tiny-mla");
  config.layers = 2;
  write(config, kDefaultShardBytes);
  const auto add = [&](const char* name) {
    rewrite(kSingle, [&](auto& entries) { entries.push_back({name, DType::kBf16, {96, 192}}); });
  };
  add("model.layers.2.eh_proj.weight");
  refuse({"model.layers.2.eh_proj.weight", "does not have"});
  change_json("config.json", [](json& object) { object["num_nextn_predict_layers"] = 1; });
  CHECK(open()->catalogue().config() == config);
  CHECK(open()->catalogue().fingerprint() == make_catalogue("m", config).fingerprint());
  CHECK(open_checkpoint(path(), 1)->catalogue().config().layers == 1);
  add("model.layers.3.eh_proj.weight");
  refuse({"model.layers.3.eh_proj.weight", "does not have"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "a router's bias has to be fp32 beside bf16 weights") {
  auto config = preset_config("tiny-glm");
  config.layers = 2;
  write(config, kDefaultShardBytes);
  const char* name = "model.layers.1.mlp.gate.e_score_correction_bias";
  const auto give_it = [&](DType dtype) {
    rewrite(kSingle, [&](auto& entries) {
      for (auto& entry : entries) {
        if (entry.name == name) entry.dtype = dtype;
      }
    });
  };
  give_it(DType::kBf16);
  refuse({name, "BF16", "F32"});
  give_it(DType::kF32);
  CHECK(open() != nullptr);
}

TEST_CASE_FIXTURE(CheckpointFixture, "what is no checkpoint is refused") {
  refuse({"no directory", "model"});
  fs::create_directory(path());
  refuse({"config.json", "No such file"});
  test::write_file(path() / "config.json", config_to_json(small()));
  refuse({"neither", kSingle, kIndex});
  fs::remove_all(path());
  write_sharded();
  test::write_file(path() / kSingle, "");
  refuse({"both", kSingle, kIndex});
}

TEST_CASE_FIXTURE(CheckpointFixture, "a damaged index is refused") {
  write_sharded();
  const auto weight_map = read_json(path() / kIndex)["weight_map"];
  const auto shard = weight_map["model.norm.weight"];
  const auto other = weight_map["model.embed_tokens.weight"];
  REQUIRE(shard != other);
  const auto damage = [&](const char* tensor, const json& file,
                          std::initializer_list<const char*> words) {
    change_json(kIndex, [&](json& index) { index["weight_map"][tensor] = file; });
    refuse(words);
    change_json(kIndex, [&](json& index) { index["weight_map"]["model.norm.weight"] = shard; });
  };
  damage("model.norm.weight", "model-00099-of-00100.safetensors", {"model-00099-of-00100"});
  damage("model.norm.weight", "../x.safetensors", {"model.norm.weight", "../x.safetensors"});
  damage("model.norm.weight", "/etc/passwd", {"model.norm.weight", "/etc/passwd"});
  damage("model.norm.weight", 7, {"model.norm.weight", "7"});
  damage("model.norm.weight", other, {"\"model.norm.weight\" is in", "places it"});
  damage("model.more.weight", shard, {"does not hold", "model.more.weight"});
  change_json(kIndex, [](json& index) { index.erase("weight_map"); });
  refuse({kIndex, "weight_map"});
  test::write_file(path() / kIndex, "[");
  refuse({kIndex, "JSON"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "tensors that are missing, twice or not listed are refused") {
  write_sharded();
  const std::string norm_shard = read_json(path() / kIndex)["weight_map"]["model.norm.weight"];
  const std::string first_shard =
      read_json(path() / kIndex)["weight_map"]["model.embed_tokens.weight"];
  REQUIRE(norm_shard != first_shard);
  rewrite(first_shard.c_str(), [](auto& entries) {
    entries.push_back({"model.norm.weight", DType::kBf16, {96}});
  });
  refuse({"twice", "model.norm.weight", norm_shard.c_str(), first_shard.c_str()});
  rewrite(first_shard.c_str(), [](auto& entries) { entries.back().name = "surprise"; });
  refuse({"\"surprise\"", first_shard.c_str(), "does not list"});
  rewrite(first_shard.c_str(), [](auto& entries) { entries.pop_back(); });
  CHECK(open() != nullptr);
  fs::remove(path() / norm_shard);
  refuse({norm_shard.c_str(), "No such file"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "tensors that the config does not describe are refused") {
  write_single();
  rewrite(kSingle, [](auto& entries) { entries.push_back({"surprise", DType::kBf16, {1}}); });
  refuse({kSingle, "\"surprise\"", "does not have"});
  rewrite(kSingle,
          [](auto& entries) { entries.back().name = "model.layers.3.input_layernorm.weight"; });
  refuse({kSingle, "model.layers.3.input_layernorm.weight"});
  rewrite(kSingle, [](auto& entries) {
    entries.back().name = "model.layers.2.self_attn.rotary_emb.inv_freq";
  });
  CHECK(open()->catalogue().find("model.layers.2.self_attn.rotary_emb.inv_freq") == std::nullopt);
}

TEST_CASE_FIXTURE(CheckpointFixture, "tensors of another dtype or shape are refused") {
  write_single();
  const auto change = [&](const std::function<void(SafetensorsEntry&)>& one,
                          std::initializer_list<const char*> words) {
    rewrite(kSingle, [&](auto& entries) {
      for (auto& entry : entries) {
        if (entry.name.ends_with("layers.1.self_attn.q_proj.weight")) one(entry);
      }
    });
    refuse(words);
  };
  const char* name = "model.layers.1.self_attn.q_proj.weight";
  change([](auto& entry) { entry.dtype = DType::kF16; }, {kSingle, name, "F16", "BF16"});
  change(
      [](auto& entry) {
        entry = {entry.name, DType::kBf16, {96, 384}};
      },
      {kSingle, name, "[96, 384]", "[384, 96]"});
  change([](auto& entry) { entry.shape = {384 * 96}; }, {name, "[36864]"});
  change([](auto& entry) { entry.shape = {384, 96, 1}; }, {name, "[384, 96, 1]"});
  change([](auto& entry) { entry.name = "x"; }, {"\"x\""});
  rewrite(kSingle,
          [](auto& entries) { std::erase_if(entries, [](auto& e) { return e.name == "x"; }); });
  refuse({name, "no tensor"});
}

TEST_CASE_FIXTURE(CheckpointFixture,
                  "a copy of tied embeddings is ignored, of untied ones needed") {
  write(small(true), kDefaultShardBytes);
  rewrite(kSingle, [](auto& entries) {
    entries.push_back({"lm_head.weight", DType::kBf16, {1129, 96}});
  });
  CHECK_FALSE(open()->catalogue().find("lm_head.weight"));
  change_json("config.json", [](json& config) { config["tie_word_embeddings"] = false; });
  CHECK(open()->catalogue().find("lm_head.weight"));
  rewrite(kSingle, [](auto& entries) { entries.pop_back(); });
  refuse({"lm_head.weight"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "writing does not touch what is there") {
  fs::create_directory(path());
  write_single();  // an empty directory is as good as none
  const auto source = open_model("preset:tiny-dense", 1);
  const auto write_again = [&](const fs::path& to) { write_checkpoint(*source, to, 1, pool_); };
  test::check_refused([&] { write_again(path()); }, {"model", "exists already"});
  test::check_refused([&] { write_again(path() / ""); }, {"exists already"});
  CHECK(open()->catalogue().config().layers == 3);
  const auto other = root_.path() / "other";
  fs::create_directory(root_.path() / "other.partial");
  test::check_refused([&] { write_again(other); }, {"other.partial", "exists"});
  CHECK_FALSE(fs::exists(other));
}

TEST_CASE_FIXTURE(CheckpointFixture, "writing that fails leaves nothing behind") {
  /// Fails in the middle, as a disk of a source checkpoint may.
  class FailingSource final : public WeightSource {
   public:
    [[nodiscard]] const Catalogue& catalogue() const override { return catalogue_; }
    void read(uint32_t tensor, uint64_t /*first*/, std::span<std::byte> /*out*/) const override {
      if (tensor == 20) throw runtime_error("the disk fails");
    }

   private:
    Catalogue catalogue_ = make_catalogue("m", small());
  };
  CHECK_THROWS_WITH_AS(write_checkpoint(FailingSource(), path(), 100'000, pool_), "the disk fails",
                       Error);
  CHECK(fs::is_empty(root_.path()));
}
