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

  /// Rows of blocks of 128 that q_proj has.
  [[nodiscard]] static uint64_t blocks_of_q() {
    const auto config = small();
    return (config.heads * config.head_dim + 127) / 128;
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
  add("model.layers.2.surprise.weight");
  refuse({"model.layers.2.surprise.weight", "does not have"});
  rewrite(kSingle, [](auto& entries) { entries.pop_back(); });
  add("model.layers.2.eh_proj.weight");
  CHECK(open()->catalogue().config() == config);
  add("model.layers.2.mlp.gate_proj.weight");
  CHECK(open()->catalogue().config() == config);
  change_json("config.json", [](json& object) { object["num_nextn_predict_layers"] = 1; });
  CHECK(open()->catalogue().config() == config);
  CHECK(open()->catalogue().fingerprint() == make_catalogue("m", config).fingerprint());
  CHECK(open_checkpoint(path(), 1)->catalogue().config().layers == 1);
  add("model.layers.3.eh_proj.weight");
  CHECK(open()->catalogue().config() == config);
}

TEST_CASE_FIXTURE(CheckpointFixture,
                  "MiMo's layers for multi-token prediction are ignored by name") {
  auto config = preset_config("mimo-7b");
  config.layers = 1;
  config.hidden = config.head_dim = config.intermediate = 8;
  config.vocab = 64;
  write(config, kDefaultShardBytes);
  const auto add = [&](const char* name) {
    rewrite(kSingle, [&](auto& entries) { entries.push_back({name, DType::kBf16, {8, 16}}); });
  };
  add("model.mtp_layers.0.input_proj.weight");
  CHECK(open()->catalogue().config() == config);
  add("model.mtp_layer.weight");
  refuse({"model.mtp_layer.weight", "does not have"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "Mixtral is read under the names of transformers 5, too") {
  auto config = preset_config("mixtral-8x7b");
  config.layers = 2;
  config.hidden = config.head_dim = config.intermediate = config.moe_intermediate = 8;
  config.vocab = 64;
  config.experts = 3;
  write(config, kDefaultShardBytes);
  rewrite(kSingle, [](auto& entries) {
    for (auto& entry : entries) {
      const auto at = entry.name.find("block_sparse_moe.");
      if (at != std::string::npos) entry.name.replace(at, 17, "mlp.");
    }
  });
  CHECK(open()->catalogue().fingerprint() == make_catalogue("m", config).fingerprint());
  rewrite(kSingle, [](auto& entries) {
    for (auto& entry : entries) {
      if (entry.name == "model.layers.1.mlp.gate.weight") entry.name = "model.layers.1.gate.weight";
    }
  });
  refuse({"model.layers.1.gate.weight", "does not have"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "weights of other float dtypes are cast and counted") {
  auto config = preset_config("tiny-glm");
  config.layers = 2;
  write(config, kDefaultShardBytes);
  CHECK(open()->remarks().empty());
  const auto give = [&](DType dtype, const char* end) {
    rewrite(kSingle, [&](auto& entries) {
      for (auto& entry : entries) {
        if (entry.name.ends_with(end)) entry.dtype = dtype;
      }
    });
  };
  give(DType::kBf16, "e_score_correction_bias");
  give(DType::kF32, "layernorm.weight");
  give(DType::kF16, "mlp.gate.weight");
  const auto remarks = open()->remarks();
  REQUIRE(remarks.size() == 1);
  for (const char* part :
       {"4 tensors F32 -> BF16", "1 tensor BF16 -> F32", "1 tensor F16 -> BF16"}) {
    CHECK_MESSAGE(remarks[0].find(part) != std::string::npos, remarks[0]);
  }
  CHECK(open()->catalogue().fingerprint() == make_catalogue("m", config).fingerprint());
  change_json("config.json", [](json& object) { object.erase("torch_dtype"); });
  CHECK(open()->catalogue().fingerprint() == make_catalogue("m", config).fingerprint());
  give(DType::kF32, ".weight");
  CHECK(open()->catalogue().config().dtype == DType::kF32);
  std::vector<std::string> said;
  CHECK(checkpoint_catalogue(path(), {}, said).config().dtype == DType::kF32);
  CHECK(said.empty());
  fs::remove(path() / kSingle);
  CHECK(checkpoint_catalogue(path(), {}, said).config().dtype == DType::kBf16);
  CHECK(said.size() == 1);
}

TEST_CASE_FIXTURE(CheckpointFixture, "a number too large for the config's dtype is refused") {
  write_single();
  change_json("config.json", [](json& object) { object["torch_dtype"] = "float16"; });
  rewrite(kSingle, [](auto& entries) {
    for (auto& entry : entries) entry.dtype = DType::kF32;
  });
  const auto put = [&](std::string_view bytes) {
    const SafetensorsFile file(path() / kSingle);
    std::fstream out(path() / kSingle, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(static_cast<std::streamoff>(file.entries().back().offset_bytes + 4 * 4));
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  };
  const auto digest = [&] { (void)digest_source(*open(), pool_); };
  put({"\x00\xef\x7f\x47", 4});  // 65519, which rounds to the largest
  CHECK_NOTHROW(digest());
  put({"\x00\x00\x80\x7f", 4});  // infinite in the file
  CHECK_NOTHROW(digest());
  put({"\x00\xf0\x7f\x47", 4});  // 65520
  test::check_refused(digest, {kSingle, "65520", "too large for F16"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "weights of other kinds are refused by name") {
  write_single();
  const auto give = [&](const SafetensorsEntry& like) {
    rewrite(kSingle, [&](auto& entries) {
      for (auto& entry : entries) {
        if (!entry.name.ends_with("layers.1.self_attn.q_proj.weight")) continue;
        entry.dtype = like.dtype;
        entry.other_dtype = like.other_dtype;
      }
    });
  };
  give({"", DType::kF8E5M2, {}});
  refuse({"layers.1.self_attn.q_proj.weight", "F8_E5M2"});
  give({"", DType::kF8E4M3, {}});
  refuse({"layers.1.self_attn.q_proj.weight", "no tensor", "q_proj.weight_scale_inv"});
  const char* scales = "model.layers.1.self_attn.q_proj.weight_scale_inv";
  const auto rows = blocks_of_q();
  rewrite(kSingle, [&](auto& entries) { entries.push_back({scales, DType::kF32, {rows, 2}}); });
  refuse({scales, "128 x 128"});
  rewrite(kSingle, [&](auto& entries) {
    entries.back().shape = {rows, 1};
    entries.back().dtype = DType::kF8E5M2;
  });
  refuse({scales, "F8_E5M2", "no dtype of scales"});
  rewrite(kSingle, [&](auto& entries) { entries.back().dtype = DType::kF32; });
  rewrite(kSingle, [&](auto& entries) { entries.back().shape = {rows, 1}; });
  CHECK(open()->remarks().size() == 1);
  give({"", DType::kBf16, {}});
  refuse({scales, "is not fp8"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "an index may name what nobody needs, and files too") {
  write_sharded();
  const auto list = [&](const char* name, const char* shard) {
    change_json(kIndex, [&](json& index) { index["weight_map"][name] = shard; });
  };
  list("model.layers.0.self_attn.rotary_emb.inv_freq", "gone.safetensors");
  CHECK(open() != nullptr);
  list("model.layers.3.input_layernorm.weight", "gone.safetensors");
  refuse({"gone.safetensors"});
  change_json(kIndex, [](json& index) {
    index["weight_map"].erase("model.layers.3.input_layernorm.weight");
  });
  list("lm_head.weight", "gone.safetensors");
  refuse({"gone.safetensors"});
  change_json("config.json", [](json& object) { object["tie_word_embeddings"] = true; });
  CHECK(open_checkpoint(path(), 1)->catalogue().find("lm_head.weight") == std::nullopt);
}

TEST_CASE_FIXTURE(CheckpointFixture, "MTP layers that only the index names are ignored") {
  auto config = preset_config("tiny-mla");
  config.layers = 2;
  write(config, 300'000);
  change_json(kIndex, [](json& index) {
    index["weight_map"]["model.layers.2.eh_proj.weight"] = "gone.safetensors";
    index["weight_map"]["model.layers.2.mlp.gate.weight"] = "gone.safetensors";
    index["weight_map"]["model.layers.3.shared_head.norm.weight"] = "gone.safetensors";
  });
  CHECK(open()->catalogue().config() == config);
  change_json(kIndex, [](json& index) {
    index["weight_map"]["model.layers.1.surprise"] = "gone.safetensors";
  });
  refuse({"gone.safetensors"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "an index of the single file is fine beside it") {
  write_single();
  json map;
  const SafetensorsFile file(path() / kSingle);
  for (const auto& entry : file.entries()) map[entry.name] = kSingle;
  test::write_file(path() / kIndex, json{{"weight_map", map}}.dump());
  CHECK(open() != nullptr);
  map["model.norm.weight"] = "other.safetensors";
  test::write_file(path() / kIndex, json{{"weight_map", map}}.dump());
  refuse({"both", kSingle, kIndex});
}

TEST_CASE_FIXTURE(CheckpointFixture, "a catalogue needs config.json alone") {
  write_sharded();
  const auto whole = open()->catalogue().fingerprint();
  for (const auto& file : fs::directory_iterator(path())) {
    if (file.path().extension() == ".safetensors") fs::remove(file.path());
  }
  std::vector<std::string> remarks;
  CHECK(checkpoint_catalogue(path(), {}, remarks).fingerprint() == whole);
  fs::remove(path() / kIndex);
  CHECK(checkpoint_catalogue(path(), {}, remarks).fingerprint() == whole);
  CHECK(checkpoint_catalogue(path(), 2, remarks).config().layers == 2);
  CHECK(remarks.empty());
  refuse({"weights are missing"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "a head that differs from tied embeddings is refused") {
  write(small(true), kDefaultShardBytes);
  rewrite(kSingle, [](auto& entries) {
    entries.push_back({"lm_head.weight", DType::kF32, {1129, 96}});
  });
  CHECK_NOTHROW((void)digest_source(*open(), pool_));
  {
    const SafetensorsFile file(path() / kSingle);
    std::fstream out(path() / kSingle, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(static_cast<std::streamoff>(file.entries().back().offset_bytes + 7 * 96 * 4 + 3));
    out << '\x3f';
    REQUIRE(file.entries().back().name == "lm_head.weight");
  }
  const auto source = open();
  test::check_refused([&] { (void)digest_source(*source, pool_); },
                      {"lm_head.weight", "model.embed_tokens.weight", "row 7", "ties"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "what people have instead of a checkpoint is recognised") {
  const auto said = [&](const fs::path& directory) -> std::string {
    try {
      (void)open_checkpoint(directory, {});
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::kRequest);
      return std::string(error.what()) + " | " + error.hint();
    }
    FAIL_CHECK("nothing was refused");
    return {};
  };
  const auto expect = [&](const fs::path& directory, std::initializer_list<const char*> words) {
    const auto text = said(directory);
    for (const char* word : words) CHECK_MESSAGE(text.find(word) != std::string::npos, text);
  };
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
  write_sharded();
  test::write_file(path() / kIndex, pointer);
  expect(path(), {kIndex, "git-lfs pointer", "git lfs install", "lfs pull"});
  test::write_file(path() / "config.json", pointer);
  expect(path(), {"config.json", "git-lfs pointer"});
  fs::remove_all(path());
  write_sharded();
  fs::remove(path() / kIndex);
  expect(path(), {"model-00001-of-", kIndex, "fetch"});
  fs::remove_all(path());
  write_single();
  test::write_file(path() / kSingle, pointer);
  expect(path(), {kSingle, "git-lfs pointer"});
  fs::remove(path() / kSingle);
  for (const auto& [file, word] :
       std::vector<std::pair<const char*, const char*>>{{"pytorch_model.bin", "safe_serialization"},
                                                        {"m.gguf", "GGUF"},
                                                        {"consolidated.safetensors", "Mistral"},
                                                        {"model_world_size_8_rank_0.pt", "trainer"},
                                                        {"zero_to_fp32.py", "trainer"},
                                                        {"model.fp16.safetensors", "whole model"},
                                                        {"adapter_model.safetensors", "adapter"}}) {
    test::write_file(path() / file, "x");
    expect(path(), {file == std::string("adapter_model.safetensors") ? "PEFT" : file, word});
    fs::remove(path() / file);
  }
  fs::remove_all(path());
  fs::create_directories(path() / "snapshots" / "abc");
  fs::create_directories(path() / "snapshots" / "main");
  fs::create_directory(path() / "refs");
  test::write_file(path() / "refs" / "main", "main\n");
  expect(path(), {"Hugging Face cache", "model/snapshots/main"});
  fs::create_directory(path() / "blobs");
  expect(path() / "blobs", {"Hugging Face cache", "model/snapshots/main"});
  fs::remove_all(path());
  fs::create_directories(path() / "empty");
  fs::create_directories(path() / "step_10" / "actor");
  test::write_file(path() / "step_10" / "actor" / "config.json", "{}");
  expect(path(), {"no config.json", "--model", "model/step_10/actor"});
  fs::remove_all(path());
  write_single();
  fs::remove(path() / kSingle);
  fs::create_symlink("../blobs/gone", path() / kSingle);
  expect(path(), {kSingle, "symbolic link to ../blobs/gone", "not there", "fetch"});
  fs::remove(path() / "config.json");
  fs::create_symlink("../blobs/gone", path() / "config.json");
  expect(path(), {"config.json", "symbolic link to ../blobs/gone"});
  fs::remove_all(path());
  fs::create_directory(path());
  test::write_file(path() / "adapter_config.json", "{}");
  expect(path(), {"PEFT", "merge_and_unload"});
  expect(path() / "adapter_config.json", {"is a file"});
  expect(root_.path() / "qwen3-8b", {"no directory", "preset:qwen3-8b"});
  expect(root_.path() / "Qwen3-8B", {"no directory", "preset:qwen3-8b"});
}

TEST_CASE_FIXTURE(CheckpointFixture, "names that wrappers leave are recognised") {
  for (const auto& [prefix, word] :
       std::vector<std::pair<const char*, const char*>>{{"base_model.model.", "PEFT"},
                                                        {"_orig_mod.", "torch.compile"},
                                                        {"module.", "DistributedDataParallel"},
                                                        {"decoder.layers.", "Megatron-core"}}) {
    write_single();
    rewrite(kSingle, [&](auto& entries) {
      for (auto& entry : entries) entry.name = prefix + entry.name;
    });
    refuse({prefix, word});
    fs::remove_all(path());
  }
  write_single();
  rewrite(kSingle, [&](auto& entries) {
    for (auto& entry : entries) {
      if (entry.name.starts_with("model.")) entry.name = entry.name.substr(6);
    }
  });
  refuse({"base model without its head"});
  for (const char* part : {".base_layer.weight", ".modules_to_save.default.weight"}) {
    fs::remove_all(path());
    write_single();
    rewrite(kSingle, [&](auto& entries) {
      for (auto& entry : entries) {
        if (!entry.name.ends_with("layers.1.self_attn.q_proj.weight")) continue;
        entry.name = "model.layers.1.self_attn.q_proj" + std::string(part);
      }
    });
    refuse({part, "PEFT"});
  }
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
  refuse({"both", kSingle, kIndex, "names other files"});
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

TEST_CASE_FIXTURE(CheckpointFixture, "tensors of another shape are refused") {
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
  change(
      [](auto& entry) {
        entry = {entry.name, DType::kBf16, {96, 768}};
      },
      {kSingle, name, "[96, 768]", "[768, 96]"});
  change([](auto& entry) { entry.shape = {768 * 96}; }, {name, "[73728]"});
  change([](auto& entry) { entry.shape = {768, 96, 1}; }, {name, "[768, 96, 1]"});
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
  fs::create_directory(root_.path() / "other.partial");  // what a killed writer left
  write_again(other);
  CHECK(fs::exists(other));
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
