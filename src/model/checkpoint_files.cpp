#include "model/checkpoint_files.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "model/input_file.hpp"
#include "model/json_input.hpp"

namespace awex {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxConfigBytes = 16U << 20;
constexpr uint64_t kMaxIndexBytes = 256U << 20;
constexpr const char* kAdapterFile = "adapter_config.json";

/// A link that leads nowhere is there, too: reading it says what is wrong.
bool is_there(const fs::path& path) { return fs::exists(fs::symlink_status(path)); }

/// Shards lie beside the index; anything else could read files the user did not mean.
bool is_plain_file_name(const std::string& name) {
  return name.ends_with(".safetensors") && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

WeightMap read_index(const fs::path& path) {
  const auto file = path.string();
  const auto object = parse_json(read_text(path, kMaxIndexBytes), file);
  const auto map = object.is_object() ? object.find("weight_map") : object.end();
  if (map == object.end() || !map->is_object() || map->empty()) {
    throw request_error(file + ": has no \"weight_map\" of tensors to files");
  }
  WeightMap result;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string() || !is_plain_file_name(shard.get_ref<const std::string&>())) {
      throw request_error(fmt::format("{}: the file of tensor {} is {}, not the name of a "
                                      ".safetensors file beside the index",
                                      file, in_quotes(tensor), shown(shard)))
          .about_tensor(tensor);
    }
    result.emplace(tensor, shard.get<std::string>());
  }
  return result;
}

std::vector<std::string> names_in(const fs::path& directory,
                                  fs::directory_options options = fs::directory_options::none) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory, options)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// The first name with this beginning and this end; empty if none.
std::string name_like(const std::vector<std::string>& names, std::string_view begin,
                      std::string_view end) {
  const auto found = std::find_if(names.begin(), names.end(), [&](const std::string& name) {
    return name.size() >= begin.size() + end.size() && name.starts_with(begin) &&
           name.ends_with(end);
  });
  return found == names.end() ? "" : *found;
}

/// The snapshot that refs/main names, or else the first; empty if there is none.
fs::path snapshot_of(const fs::path& cached_model) {
  const auto snapshots = cached_model / "snapshots";
  if (!fs::is_directory(snapshots)) return {};
  if (const auto main = cached_model / "refs" / "main"; fs::is_regular_file(main)) {
    auto revision = read_text(main, 4096);
    revision.erase(std::find_if(revision.begin(), revision.end(), [](char c) { return c < '!'; }),
                   revision.end());
    if (!revision.empty() && fs::is_directory(snapshots / revision)) return snapshots / revision;
  }
  const auto names = names_in(snapshots);
  return names.empty() ? fs::path() : snapshots / names.front();
}

void refuse_cache(const fs::path& directory) {
  auto model = directory;
  for (const char* part : {"snapshots", "blobs", "refs"}) {
    if (directory.filename() == part) model = directory.parent_path();
  }
  if (const auto snapshot = snapshot_of(model); !snapshot.empty()) {
    throw request_error(fmt::format("{} is the root of a model in a Hugging Face cache; the "
                                    "checkpoint lies in a snapshot below it",
                                    directory.string()),
                        fmt::format("--model {}", snapshot.string()));
  }
  for (const auto& root : {directory, directory / "hub"}) {
    if (!fs::is_directory(root)) continue;
    const auto cached = name_like(names_in(root), "models--", "");
    if (cached.empty()) continue;
    const auto snapshot = snapshot_of(root / cached);
    throw request_error(
        fmt::format("{} is a Hugging Face cache of models", directory.string()),
        fmt::format("name a snapshot in it, as --model {}",
                    (snapshot.empty() ? root / cached / "snapshots" / "HASH" : snapshot).string()));
  }
}

/// Weights in other forms than Hugging Face's safetensors.
void refuse_other_forms(const fs::path& directory, const std::vector<std::string>& names) {
  const auto refuse = [&](const std::string& what, const std::string& hint) {
    throw request_error(fmt::format("{} {}", directory.string(), what), hint);
  };
  if (fs::exists(directory / kAdapterFile) || !name_like(names, "adapter_model", "").empty()) {
    refuse("holds a PEFT adapter alone, not a model",
           "merge it into its base model: "
           "PeftModel.from_pretrained(base, DIR).merge_and_unload().save_pretrained(OUT)");
  }
  if (const auto shard = name_like(names, "model-", ".safetensors"); !shard.empty()) {
    refuse(
        fmt::format("holds {}, but neither {} nor {}", shard, kSingleFile, kIndexFile),
        fmt::format("fetch {} too, which tells the tensors of each shard, or save the model again "
                    "with save_pretrained",
                    kIndexFile));
  }
  if (const auto file = name_like(names, "consolidated", ".safetensors");
      !file.empty() || fs::exists(directory / "params.json")) {
    refuse(fmt::format("holds {}: weights in the form of Mistral or Meta, whose tensors have other "
                       "names and orders",
                       file.empty() ? "params.json" : file),
           "use the same model in Hugging Face's form (config.json, model*.safetensors)");
  }
  if (const auto file = name_like(names, "", ".gguf"); !file.empty()) {
    refuse(fmt::format("holds {}: GGUF files are not supported", file),
           "use the Hugging Face checkpoint (safetensors) that it was made from");
  }
  for (const auto& [begin, end] : {std::pair{"", ".distcp"},
                                   {"model_world_size_", ".pt"},
                                   {"zero_to_fp32", ".py"},
                                   {"latest_checkpointed_iteration", ".txt"}}) {
    const auto file = name_like(names, begin, end);
    if (file.empty()) continue;
    refuse(fmt::format("holds {}: a distributed checkpoint of a trainer", file),
           "export it to Hugging Face's form with the trainer's own tool");
  }
  for (const char* end : {".bin", ".pt", ".pth", ".bin.index.json"}) {
    const auto file = name_like(names, "", end);
    if (file.empty() || file == "training_args.bin" || file.starts_with("tokenizer")) continue;
    refuse(fmt::format("holds {}: pickled weights are not supported", file),
           "save them as safetensors: AutoModelForCausalLM.from_pretrained(DIR, "
           "torch_dtype=\"auto\").save_pretrained(OUT, safe_serialization=True)");
  }
  if (const auto file = name_like(names, "", ".safetensors"); !file.empty()) {
    refuse(fmt::format("holds {}, but neither {} nor {}", file, kSingleFile, kIndexFile),
           fmt::format("if it is the whole model, name it {}", kSingleFile));
  }
}

/// The first directory with a config.json at most so many levels below; empty if there is none.
fs::path checkpoint_below(const fs::path& directory, int levels) {
  constexpr size_t kMostLooked = 100;
  auto names = names_in(directory, fs::directory_options::skip_permission_denied);
  names.resize(std::min(names.size(), kMostLooked));
  for (const auto& name : names) {
    std::error_code failure;
    auto inner = directory / name;
    if (!fs::is_directory(fs::symlink_status(inner, failure))) continue;
    if (fs::exists(inner / kConfigFile, failure)) return inner;
    if (levels == 1) continue;
    if (auto found = checkpoint_below(inner, levels - 1); !found.empty()) return found;
  }
  return {};
}

/// Trainers write checkpoints into directories of the one that they are given.
void refuse_outer(const fs::path& directory) {
  constexpr int kLevels = 3;
  const auto inner = checkpoint_below(directory, kLevels);
  if (inner.empty()) return;
  throw request_error(
      fmt::format("{} holds no {}; checkpoints lie below it", directory.string(), kConfigFile),
      fmt::format("name one of them, as --model {}", inner.string()));
}

struct KnownName {
  std::string_view part;
  bool is_beginning;
  const char* what;
  const char* hint;
};

constexpr const char* kSaveInner = "save the module inside: model.module.save_pretrained(OUT)";
constexpr const char* kQuantisedHint = "use the checkpoint in bfloat16 that it was made from";

constexpr const char* kMergeHint = "merge it: model.merge_and_unload().save_pretrained(OUT)";

constexpr std::array<KnownName, 20> kKnownNames{{
    {".lora_", false, "a PEFT adapter that was not merged", kMergeHint},
    {"base_model.model.", true, "a PEFT model's names", kMergeHint},
    {".base_layer.", false, "a PEFT model's names", kMergeHint},
    {".modules_to_save.", false, "a PEFT model's names", kMergeHint},
    {"_orig_mod.", false, "the names of a module that torch.compile wraps",
     "save the module inside: model._orig_mod.save_pretrained(OUT)"},
    {"_fsdp_wrapped_module.", false, "the names of a module that FSDP wraps",
     "gather a full state dict and save that"},
    {"_checkpoint_wrapped_module.", false,
     "the names of a module that activation checkpointing "
     "wraps",
     "save the module inside"},
    {"module.", true, "the names of a module that DistributedDataParallel or an engine wraps",
     kSaveInner},
    {"language_model.", false, "a model of several modalities, of which this is the language part",
     "save the language model alone"},
    {"layers.", true, "a base model without its head, which has no \"model.\" before its names",
     "load it with AutoModelForCausalLM and save it again"},
    {"embed_tokens.", true,
     "a base model without its head, which has no \"model.\" before its names",
     "load it with AutoModelForCausalLM and save it again"},
    {"decoder.layers.", true, "the names of Megatron-core",
     "export it to Hugging Face's form, with Megatron-Bridge for example"},
    {".qweight", false, "GPTQ or AWQ weights", kQuantisedHint},
    {".qzeros", false, "GPTQ or AWQ weights", kQuantisedHint},
    {".g_idx", false, "GPTQ weights", kQuantisedHint},
    {".weight_packed", false, "weights of compressed-tensors", kQuantisedHint},
    {"_blocks", false, "mxfp4 weights", kQuantisedHint},
    {".weight_scale_inv", false, "scales of an fp8 weight, but the weight is not fp8",
     "the conversion of this checkpoint stopped half-way: make it again"},
    {".weight_scale", false, "quantised weights whose scales are not those of blocks",
     kQuantisedHint},
    {".absmax", false, "weights of bitsandbytes", kQuantisedHint},
}};

}  // namespace

std::string read_config_text(const fs::path& directory) {
  if (!is_there(directory / kConfigFile)) {
    refuse_cache(directory);
    // Weights as they should be lack their config.json only, which reading it says.
    if (!holds_weights(directory)) {
      refuse_other_forms(directory, names_in(directory));
      refuse_outer(directory);
    }
  }
  return read_text(directory / kConfigFile, kMaxConfigBytes);
}

bool holds_weights(const fs::path& directory) {
  return is_there(directory / kSingleFile) || is_there(directory / kIndexFile);
}

CheckpointFiles list_checkpoint_files(const fs::path& directory) {
  const bool has_single = is_there(directory / kSingleFile);
  if (!is_there(directory / kIndexFile)) {
    if (has_single) return {{kSingleFile}, std::nullopt};
    refuse_other_forms(directory, names_in(directory));
    throw request_error(fmt::format("{} holds neither {} nor {}: the weights are missing",
                                    directory.string(), kSingleFile, kIndexFile),
                        "fetch them, too; only plan needs no more than config.json");
  }
  auto index = read_index(directory / kIndexFile);
  std::vector<std::string> files;
  for (const auto& [tensor, shard] : index) files.push_back(shard);
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  if (has_single && files != std::vector<std::string>{kSingleFile}) {
    throw request_error(
        fmt::format("{} holds both {} and {}, which names other files, and they may "
                    "differ",
                    directory.string(), kSingleFile, kIndexFile),
        "remove the one that is stale");
  }
  return {std::move(files), std::move(index)};
}

NameRemark remark_on_name(std::string_view tensor) {
  for (const auto& known : kKnownNames) {
    const auto at = tensor.find(known.part);
    if (known.is_beginning ? at == 0 : at != std::string_view::npos) {
      return {known.what, known.hint};
    }
  }
  return {};
}

}  // namespace awex
