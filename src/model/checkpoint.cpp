#include "model/checkpoint.hpp"

#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <exception>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "base/nearest.hpp"
#include "base/unique_fd.hpp"
#include "base/units.hpp"
#include "model/checkpoint_files.hpp"
#include "model/families/family.hpp"
#include "model/json_input.hpp"
#include "model/presets.hpp"
#include "model/safetensors.hpp"
#include "model/stored_tensor.hpp"

namespace awex {
namespace {

namespace fs = std::filesystem;

// ---- reading

/// A tensor that a file really holds.
struct Found {
  size_t file;
  const SafetensorsEntry* entry;
  bool is_used = false;
};

Error tensor_error(const std::string& tensor, const std::string& message,
                   const std::string& hint = {}) {
  return request_error(message, hint).about_tensor(tensor);
}

/// The number of the layer whose tensor this is.
std::optional<uint64_t> layer_of(std::string_view tensor) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!tensor.starts_with(kPrefix)) return std::nullopt;
  tensor.remove_prefix(kPrefix.size());
  uint64_t layer = 0;
  const auto* last = tensor.data() + tensor.size();
  const auto [end, error] = std::from_chars(tensor.data(), last, layer);
  if (error != std::errc{} || end == last || *end != '.') return std::nullopt;
  return layer;
}

/// Whether only layers for multi-token prediction have such a tensor (inference/model.py of
/// DeepSeek-V3, vLLM's deepseek_mtp.py).
bool marks_mtp_layer(std::string_view tensor) {
  return tensor.ends_with(".eh_proj.weight") || tensor.ends_with(".enorm.weight") ||
         tensor.ends_with(".hnorm.weight") || tensor.find(".shared_head.") != std::string::npos ||
         tensor.ends_with(".embed_tokens.weight");
}

/// Which tensors of files and index nobody needs: those that transformers leaves unread, too.
class Unneeded {
 public:
  Unneeded(const ModelConfig& full, uint64_t kept_layers)
      : full_(full), kept_layers_(kept_layers) {}

  /// To be told all names before it is asked.
  void see(const std::string& tensor) {
    const auto layer = layer_of(tensor);
    if (layer && *layer >= full_.layers && marks_mtp_layer(tensor)) mtp_.insert(*layer);
  }

  [[nodiscard]] bool contains(const std::string& tensor) const {
    if (tensor == kHead) return full_.tied_embeddings;
    if (tensor.find("rotary_emb.") != std::string::npos || tensor.starts_with("mtp.")) return true;
    for (const auto& beginning : family_of(full_).ignored) {
      if (tensor.starts_with(beginning)) return true;
    }
    const auto layer = layer_of(tensor);
    if (!layer || *layer < kept_layers_) return false;
    return *layer < full_.layers + full_.mtp_layers || mtp_.contains(*layer);
  }

  static constexpr const char* kHead = "lm_head.weight";

 private:
  const ModelConfig& full_;
  uint64_t kept_layers_;
  std::set<uint64_t> mtp_;
};

/// The part of a file's tensor that a canonical tensor is: all of it, or a matrix of the stack that
/// transformers 5 makes of a layer's experts.
struct StoredPart {
  std::string name;             ///< In the file.
  std::vector<uint64_t> shape;  ///< Of the whole there.
  uint64_t matrix = 0;          ///< Of those stacked.
  uint64_t first_row = 0;       ///< Within the matrix.
};

std::vector<uint64_t> shape_of(const TensorInfo& info) {
  return info.is_vector ? std::vector<uint64_t>{info.rows}
                        : std::vector<uint64_t>{info.rows, info.cols};
}

/// The stack that may hold an expert's matrix: gate_up_proj [experts, 2 * moe_intermediate, hidden]
/// and down_proj [experts, hidden, moe_intermediate] (transformers 5, modeling_qwen3_moe.py, under
/// the same name for all families).
std::optional<StoredPart> stacked_part(const TensorInfo& info, const ModelConfig& config) {
  if (!info.expert) return std::nullopt;
  const auto prefix = fmt::format("model.layers.{}.mlp.experts.", info.layer.value());
  if (info.role == TensorRole::kExpertDown) {
    return StoredPart{
        prefix + "down_proj", {config.experts, info.rows, info.cols}, *info.expert, 0};
  }
  const uint64_t first_row = info.role == TensorRole::kExpertUp ? info.rows : 0;
  return StoredPart{
      prefix + "gate_up_proj", {config.experts, 2 * info.rows, info.cols}, *info.expert, first_row};
}

/// The tensor under another name that files of its family may have.
std::optional<StoredPart> renamed_part(const TensorInfo& info, const Family& family) {
  for (const auto& [canonical, stored] : family.stored) {
    const auto at = info.name.find(canonical);
    if (at == std::string::npos) continue;
    auto name = info.name;
    return StoredPart{name.replace(at, canonical.size(), stored), shape_of(info)};
  }
  return std::nullopt;
}

std::string directory_name(const fs::path& directory) {
  const auto absolute = fs::absolute(directory).lexically_normal();
  const auto name = absolute.filename().empty() ? absolute.parent_path() : absolute;
  return name.filename().string();
}

class CheckpointSource final : public WeightSource {
 public:
  CheckpointSource(const fs::path& directory, std::optional<uint64_t> keep_layers)
      : directory_(directory),
        config_(parse_checkpoint_config(read_config_text(directory),
                                        (directory / kConfigFile).string())),
        catalogue_(make_catalogue(
            directory_name(directory),
            keep_first_layers(config_.model, keep_layers.value_or(config_.model.layers),
                              directory.string()))),
        unneeded_(config_.model, catalogue_.config().layers) {
    const auto listing = list_checkpoint_files(directory);
    open_files(listing);
    find_tensors();
    if (listing.index) check_index(*listing.index);
    if (!config_.names_dtype) take_dtype_of_files();
    place_catalogue();
    place_twin();
    found_.clear();
  }

  [[nodiscard]] const Catalogue& catalogue() const override { return catalogue_; }

  void read(uint32_t tensor, uint64_t first, std::span<std::byte> out) const override {
    const auto& place = places_.at(tensor);
    const auto& info = catalogue_.tensors().at(tensor);
    check_range(info, first, out.size());
    read_stored(place, info, first, out);
    if (twin_ && tensor == kEmbedding) check_twin(info, first, out);
  }

  [[nodiscard]] uint64_t bytes_to_read(uint32_t tensor, uint64_t first,
                                       uint64_t elements) const override {
    const auto& info = catalogue_.tensors().at(tensor);
    const uint64_t bytes = stored_bytes(places_.at(tensor), info, first, elements);
    const bool reads_twin = twin_ && tensor == kEmbedding;
    return reads_twin ? bytes + stored_bytes(*twin_, info, first, elements) : bytes;
  }

  [[nodiscard]] const std::vector<SafetensorsFile>& files() const override { return files_; }

  [[nodiscard]] std::vector<std::string> remarks() const override {
    std::string list;
    for (const auto& [dtypes, count] : casts_) {
      const auto& [from, to] = dtypes;
      list += fmt::format("{}{} tensor{} {} -> {}", list.empty() ? "" : ", ", count,
                          count == 1 ? "" : "s", dtype_name(from), dtype_name(to));
      if (from == DType::kF8E4M3) list += " by the scales of their blocks";
    }
    if (list.empty()) return {};
    return {fmt::format("{}: weights are cast while loading: {}", directory_.string(), list)};
  }

 private:
  static constexpr uint32_t kEmbedding = 0;  ///< Its index in every catalogue.

  [[nodiscard]] const std::string& file_name(size_t file) const {
    return files_.at(file).file().name();
  }

  /// Files that hold nothing which is needed may be missing.
  void open_files(const CheckpointFiles& listing) {
    std::set<std::string> needed(listing.files.begin(), listing.files.end());
    if (listing.index) {
      needed.clear();
      for (const auto& [tensor, shard] : *listing.index) unneeded_.see(tensor);
      for (const auto& [tensor, shard] : *listing.index) {
        if (tensor == Unneeded::kHead ? fs::exists(directory_ / shard)
                                      : !unneeded_.contains(tensor)) {
          needed.insert(shard);
        }
      }
    }
    open_all({needed.begin(), needed.end()});
  }

  /// Many at once: storage is waited for, not the processor. Of several that are no good the first
  /// is told.
  void open_all(const std::vector<std::string>& names) {
    constexpr size_t kReaders = 16;
    std::vector<std::optional<SafetensorsFile>> files(names.size());
    std::vector<std::exception_ptr> failures(names.size());
    ThreadPool readers(std::min(kReaders, names.size()));
    readers.for_each(names.size(), [&](size_t i) {
      try {
        files[i].emplace(directory_ / names[i]);
      } catch (...) {
        failures[i] = std::current_exception();
      }
    });
    for (const auto& failure : failures) {
      if (failure) std::rethrow_exception(failure);
    }
    for (auto& file : files) files_.push_back(*std::move(file));
  }

  void find_tensors() {
    for (size_t file = 0; file < files_.size(); ++file) {
      for (const auto& entry : files_[file].entries()) {
        unneeded_.see(entry.name);
        const auto [at, is_new] = found_.emplace(entry.name, Found{file, &entry});
        if (!is_new) {
          throw tensor_error(entry.name, fmt::format("tensor {} is there twice, in {} and in {}",
                                                     in_quotes(entry.name),
                                                     file_name(at->second.file), file_name(file)));
        }
      }
    }
  }

  /// The index and the files must tell the same story, in both directions.
  void check_index(const WeightMap& index) const {
    for (const auto& [tensor, shard] : index) {
      if (unneeded_.contains(tensor)) continue;
      const auto expected = (directory_ / shard).string();
      const auto at = found_.find(tensor);
      if (at == found_.end()) {
        if (tensor.ends_with(kScaleSuffix)) continue;  // missed where the weight is fp8
        throw tensor_error(tensor, fmt::format("{} does not hold tensor {}, which {} places there",
                                               expected, in_quotes(tensor), kIndexFile));
      }
      if (file_name(at->second.file) != expected) {
        throw tensor_error(
            tensor, fmt::format("tensor {} is in {}, but {} places it in {}", in_quotes(tensor),
                                file_name(at->second.file), kIndexFile, expected));
      }
    }
    for (const auto& [tensor, found] : found_) {
      if (index.contains(tensor) || unneeded_.contains(tensor)) continue;
      throw tensor_error(tensor, fmt::format("{} holds tensor {}, which {} does not list",
                                             file_name(found.file), in_quotes(tensor), kIndexFile));
    }
  }

  /// The one that holds most elements; fp8 stands for bf16, of which it was made.
  void take_dtype_of_files() {
    std::map<DType, uint64_t> elements;
    for (const auto& info : catalogue_.tensors()) {
      const auto* found = find_part(info).second;
      if (found == nullptr || !found->entry->has_known_dtype()) continue;
      const auto dtype = found->entry->dtype;
      elements[element_bytes(dtype) == 1 ? DType::kBf16 : dtype] += info.elements();
    }
    const auto most = std::max_element(
        elements.begin(), elements.end(),
        [](const auto& one, const auto& other) { return one.second < other.second; });
    if (most == elements.end()) return;
    auto config = catalogue_.config();
    config.dtype = most->first;
    catalogue_ = make_catalogue(catalogue_.model_name(), config);
  }

  /// Where a canonical tensor should be, and what is there: nothing if it is missing.
  std::pair<StoredPart, Found*> find_part(const TensorInfo& info) {
    StoredPart whole{info.name, shape_of(info)};
    if (const auto at = found_.find(info.name); at != found_.end()) return {whole, &at->second};
    for (auto& other :
         {renamed_part(info, family_of(config_.model)), stacked_part(info, catalogue_.config())}) {
      const auto at = other ? found_.find(other->name) : found_.end();
      if (at != found_.end()) return {*other, &at->second};
    }
    return {std::move(whole), nullptr};
  }

  /// Tensors beyond the config mean that the config is not this checkpoint's, and tell best why
  /// others are missing.
  void place_catalogue() {
    const TensorInfo* missing = nullptr;
    for (const auto& info : catalogue_.tensors()) {
      const auto [part, found] = find_part(info);
      if (found != nullptr) {
        places_.push_back(place_of(info, part, *found));
        count_cast(places_.back().dtype, info.dtype);
      } else if (missing == nullptr) {
        missing = &info;
      }
    }
    for (const auto& [tensor, found] : found_) {
      if (!found.is_used && !unneeded_.contains(tensor)) refuse_surplus(tensor, found);
    }
    if (missing == nullptr) return;
    throw tensor_error(missing->name,
                       fmt::format("{} has no tensor \"{}\", which a model of its {} has",
                                   directory_.string(), missing->name, kConfigFile),
                       config_.assumptions());
  }

  [[noreturn]] void refuse_surplus(const std::string& tensor, const Found& found) const {
    const auto [what, hint] = remark_on_name(tensor);
    throw tensor_error(tensor,
                       fmt::format("{} holds tensor {}, which a model of this {} does not have{}{}",
                                   file_name(found.file), in_quotes(tensor), kConfigFile,
                                   what.empty() ? "" : ": it looks like ", what),
                       hint.empty() ? config_.assumptions() : hint);
  }

  void count_cast(DType from, DType to) {
    if (from != to) ++casts_[{from, to}];
  }

  /// The place of a part of the tensor that was found, once its dtype, shape and scales are right.
  StoredTensor place_of(const TensorInfo& info, const StoredPart& part, Found& found) {
    found.is_used = true;
    const auto& entry = *found.entry;
    if (entry.shape != part.shape) {
      throw tensor_error(
          info.name,
          fmt::format("{}: tensor \"{}\" is {} of shape [{}]; a model of its {} has shape [{}]",
                      file_name(found.file), part.name, entry.dtype_name(),
                      fmt::join(entry.shape, ", "), kConfigFile, fmt::join(part.shape, ", ")),
          config_.assumptions());
    }
    const bool is_fp8 = entry.has_known_dtype() && entry.dtype == DType::kF8E4M3;
    if (!entry.has_known_dtype() || (element_bytes(entry.dtype) == 1 && !is_fp8)) {
      throw tensor_error(
          info.name,
          fmt::format("{}: tensor \"{}\" is {}, which is no dtype of weights here",
                      file_name(found.file), part.name, entry.dtype_name()),
          "weights are read as BF16, F16, F32, or F8_E4M3 with a scale for each block: "
          "use such a checkpoint");
    }
    const uint64_t rows = info.is_vector ? 1 : *(part.shape.end() - 2);
    const uint64_t before = (part.matrix * rows + part.first_row) * info.cols;
    StoredTensor place{&files_[found.file].file(),
                       entry.offset_bytes + before * element_bytes(entry.dtype), entry.dtype};
    if (is_fp8) place.scales = scales_of(info, part, found);
    return place;
  }

  StoredScales scales_of(const TensorInfo& info, const StoredPart& part, const Found& weight) {
    const auto name = part.name + kScaleSuffix;
    const auto at = found_.find(name);
    if (info.is_vector || at == found_.end()) {
      throw tensor_error(
          info.name,
          fmt::format("{}: tensor \"{}\" is F8_E4M3, but there is no tensor \"{}\" of "
                      "its blocks' scales",
                      file_name(weight.file), part.name, name),
          "of fp8 checkpoints only those with a scale for each block are read: use "
          "such a one, or the one in bfloat16");
    }
    at->second.is_used = true;
    const auto& entry = *at->second.entry;
    auto shape = part.shape;
    auto& rows = *(shape.end() - 2);
    rows = ceil_div(rows, config_.block_rows);
    shape.back() = ceil_div(info.cols, config_.block_cols);
    if (!entry.has_known_dtype() || element_bytes(entry.dtype) == 1) {
      throw tensor_error(
          name,
          fmt::format("{}: the scales \"{}\" are {}, which is no dtype of scales here",
                      file_name(at->second.file), name, entry.dtype_name()),
          "scales are read as F32, BF16 or F16: use such a checkpoint, or the one in "
          "bfloat16");
    }
    if (entry.shape != shape) {
      throw tensor_error(
          name,
          fmt::format(
              "{}: the scales \"{}\" are {} of shape [{}]; blocks of {} x {} have floats of "
              "shape [{}]",
              file_name(at->second.file), name, entry.dtype_name(), fmt::join(entry.shape, ", "),
              config_.block_rows, config_.block_cols, fmt::join(shape, ", ")),
          "config.json gives the blocks: quantization_config.weight_block_size, 128 x 128 unless "
          "it "
          "does");
    }
    return {&files_[at->second.file].file(),
            entry.offset_bytes + part.matrix * rows * shape.back() * element_bytes(entry.dtype),
            entry.dtype,
            config_.block_rows,
            config_.block_cols,
            shape.back(),
            part.first_row};
  }

  /// A head beside tied embeddings is to be their copy, which reading them proves.
  void place_twin() {
    if (!config_.model.tied_embeddings) return;
    const auto at = found_.find(Unneeded::kHead);
    if (at == found_.end()) return;
    auto info = catalogue_.tensors().at(kEmbedding);
    info.name = Unneeded::kHead;
    twin_ = place_of(info, {info.name, shape_of(info)}, at->second);
  }

  void check_twin(const TensorInfo& info, uint64_t first,
                  std::span<const std::byte> embedding) const {
    const auto head = std::make_unique_for_overwrite<std::byte[]>(embedding.size());
    const std::span bytes(head.get(), embedding.size());
    read_stored(*twin_, info, first, bytes);
    const auto differs = std::mismatch(bytes.begin(), bytes.end(), embedding.begin()).first;
    if (differs == bytes.end()) return;
    const auto element =
        first + static_cast<uint64_t>(differs - bytes.begin()) / element_bytes(info.dtype);
    throw tensor_error(
        Unneeded::kHead,
        fmt::format("{} holds a \"{}\" that differs from \"{}\" (row {}), but its {} ties them",
                    directory_.string(), Unneeded::kHead, info.name, element / info.cols,
                    kConfigFile),
        "set \"tie_word_embeddings\" to false in config.json if the model has a head of its own, "
        "or "
        "else remove lm_head.weight from the files");
  }

  static constexpr const char* kScaleSuffix = "_scale_inv";

  fs::path directory_;
  CheckpointConfig config_;  ///< Its model has all layers of the files.
  Catalogue catalogue_;
  Unneeded unneeded_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Found> found_;                 ///< Only while opening.
  std::vector<StoredTensor> places_;                   ///< By catalogue index.
  std::optional<StoredTensor> twin_;                   ///< The stored head of tied embeddings.
  std::map<std::pair<DType, DType>, uint64_t> casts_;  ///< Tensors by dtype in files and here.
};

// ---- writing

/// Consecutive tensors of the catalogue that share a file.
struct Shard {
  uint32_t first = 0;
  uint32_t count = 0;
};

std::vector<Shard> split_into_shards(const Catalogue& catalogue, uint64_t max_shard_bytes) {
  std::vector<Shard> shards;
  uint64_t bytes = 0;
  for (uint32_t tensor = 0; tensor < catalogue.tensors().size(); ++tensor) {
    const auto size = catalogue.tensors()[tensor].bytes();
    if (shards.empty() || bytes + size > max_shard_bytes) {
      shards.push_back({tensor, 0});
      bytes = 0;
    }
    ++shards.back().count;
    bytes += size;
  }
  return shards;
}

std::string shard_name(size_t shard, size_t shards) {
  return shards == 1 ? kSingleFile
                     : fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
}

/// A directory that vanishes with its content unless it is published under its real name.
class PartialDirectory {
 public:
  explicit PartialDirectory(fs::path target)
      : target_(std::move(target)), path_(target_.string() + ".partial") {
    const bool is_new = fs::create_directories(path_);
    lock_ = UniqueFd(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    // Who writes holds the lock; a killed run has left it.
    const bool is_ours = lock_.valid() && ::flock(lock_.get(), LOCK_EX | LOCK_NB) == 0;
    if (!is_new && !is_ours) {
      throw request_error(
          fmt::format("{} exists: another run writes it or left it behind", path_.string()),
          "remove it when no other run writes it");
    }
    if (is_new) return;
    for (const auto& entry : fs::directory_iterator(path_)) fs::remove_all(entry.path());
  }
  PartialDirectory(const PartialDirectory&) = delete;
  PartialDirectory& operator=(const PartialDirectory&) = delete;
  PartialDirectory(PartialDirectory&&) = delete;
  PartialDirectory& operator=(PartialDirectory&&) = delete;
  ~PartialDirectory() {
    if (path_.empty()) return;
    std::error_code failure;
    fs::remove_all(path_, failure);
    if (failure) {
      log::warning(fmt::format("cannot remove {}: {}", path_.string(), failure.message()));
    }
  }

  [[nodiscard]] const fs::path& path() const { return path_; }

  void publish() {
    fs::rename(path_, target_);
    path_.clear();
  }

 private:
  fs::path target_;
  fs::path path_;
  UniqueFd lock_;
};

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text << std::flush;
  if (!out) throw errno_error(fmt::format("write {}", path.string()), "ofstream", errno);
}

void write_shard(const WeightSource& source, const Shard& shard, const fs::path& path,
                 ThreadPool& pool, const std::function<void()>& poll) {
  const auto& tensors = source.catalogue().tensors();
  std::vector<SafetensorsEntry> entries;
  for (uint32_t i = 0; i < shard.count; ++i) {
    const auto& info = tensors[shard.first + i];
    auto shape = std::vector<uint64_t>{info.rows};
    if (!info.is_vector) shape.push_back(info.cols);
    entries.push_back({info.name, info.dtype, std::move(shape)});
  }
  const SafetensorsWriter writer(path, std::move(entries));
  for_each_chunk(source, shard.first, shard.count, pool, [&](const WeightChunk& chunk) {
    poll();
    const auto element_size = element_bytes(tensors[chunk.tensor].dtype);
    writer.write(chunk.tensor - shard.first, chunk.first * element_size, chunk.bytes);
  });
  writer.flush();
}

std::string make_index(const Catalogue& catalogue, const std::vector<Shard>& shards) {
  nlohmann::json map = nlohmann::json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    for (uint32_t t = 0; t < shards[i].count; ++t) {
      map[catalogue.tensors()[shards[i].first + t].name] = shard_name(i, shards.size());
    }
  }
  const nlohmann::json index{{"metadata", {{"total_size", catalogue.bytes()}}},
                             {"weight_map", std::move(map)}};
  return index.dump(2) + "\n";
}

void check_target(const fs::path& directory, uint64_t needed_bytes) {
  if (fs::exists(directory) && !(fs::is_directory(directory) && fs::is_empty(directory))) {
    throw request_error(fmt::format("{} exists already", directory.string()),
                        "name a directory that does not exist yet");
  }
  auto disk = fs::absolute(directory);
  while (!fs::exists(disk)) disk = disk.parent_path();
  const auto available = fs::space(disk).available;
  if (available < needed_bytes) {
    throw request_error(
        fmt::format("a checkpoint of {} does not fit the {} that are free at {}",
                    format_bytes(needed_bytes), format_bytes(available), disk.string()),
        "name a directory on a larger disk, or keep fewer layers (--layers N)");
  }
}

void write_all(const WeightSource& source, const fs::path& directory, uint64_t max_shard_bytes,
               ThreadPool& pool, const std::function<void()>& poll) {
  check_target(directory, source.catalogue().bytes());
  PartialDirectory partial(directory);
  const auto shards = split_into_shards(source.catalogue(), max_shard_bytes);
  for (size_t i = 0; i < shards.size(); ++i) {
    write_shard(source, shards[i], partial.path() / shard_name(i, shards.size()), pool, poll);
  }
  if (shards.size() > 1) {
    write_text(partial.path() / kIndexFile, make_index(source.catalogue(), shards));
  }
  write_text(partial.path() / kConfigFile, config_to_json(source.catalogue().config()));
  poll();
  partial.publish();
}

/// What to do where --model names no directory.
std::string hint_for(const fs::path& model) {
  const auto presets = presets_like(model.filename().string());
  if (!presets.empty()) {
    return fmt::format("for that published shape with generated weights: preset:{}",
                       fmt::join(presets, ", preset:"));
  }
  return "name a Hugging Face checkpoint directory or preset:NAME";
}

/// Does `work` on a directory that must be there; errors of the file system become request errors.
template <class Work>
auto in_directory(const fs::path& directory, const Work& work) -> decltype(work()) {
  try {
    if (fs::is_directory(directory)) return work();
  } catch (const fs::filesystem_error& error) {
    throw request_error(
        fmt::format("cannot open {}: {}", directory.string(), error.code().message()));
  }
  if (fs::exists(directory)) {
    throw request_error(directory.string() + " is a file, not a checkpoint's directory",
                        "name the directory that holds config.json and the weights");
  }
  throw request_error(fmt::format("there is no directory {}", directory.string()),
                      hint_for(directory));
}

}  // namespace

std::unique_ptr<WeightSource> open_checkpoint(const fs::path& directory,
                                              std::optional<uint64_t> keep_layers) {
  return in_directory(directory, [&]() -> std::unique_ptr<WeightSource> {
    return std::make_unique<CheckpointSource>(directory, keep_layers);
  });
}

Catalogue checkpoint_catalogue(const fs::path& directory, std::optional<uint64_t> keep_layers,
                               std::vector<std::string>& remarks) {
  return in_directory(directory, [&] {
    const auto file = (directory / kConfigFile).string();
    const auto config = parse_checkpoint_config(read_config_text(directory), file);
    if (!config.names_dtype && holds_weights(directory)) {
      const CheckpointSource source(directory, keep_layers);
      return source.catalogue();
    }
    if (!config.names_dtype) {
      remarks.push_back(file +
                        " names no dtype, and there are no weights to take it from: bfloat16 "
                        "is assumed");
    }
    return make_catalogue(directory_name(directory),
                          keep_first_layers(config.model, keep_layers.value_or(config.model.layers),
                                            directory.string()));
  });
}

void write_checkpoint(const WeightSource& source, const fs::path& directory,
                      uint64_t max_shard_bytes, ThreadPool& pool,
                      const std::function<void()>& poll) {
  // A trailing slash would put the partial directory into the directory itself.
  const auto target = directory.has_filename() ? directory : directory.parent_path();
  if (target.empty()) throw request_error("the checkpoint needs a directory to be written to");
  try {
    write_all(source, target, max_shard_bytes, pool, poll);
  } catch (const fs::filesystem_error& error) {
    throw runtime_error(fmt::format("cannot write a checkpoint to {}: {}", target.string(),
                                    error.code().message()));
  }
}

}  // namespace awex
