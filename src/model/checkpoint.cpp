#include "model/checkpoint.hpp"

#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "base/unique_fd.hpp"
#include "base/units.hpp"
#include "model/json_input.hpp"
#include "model/safetensors.hpp"

namespace awex {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxConfigBytes = 16U << 20;
constexpr uint64_t kMaxIndexBytes = 256U << 20;
constexpr const char* kConfigFile = "config.json";
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// ---- reading

/// Tensor name to the name of the shard that must hold it.
using WeightMap = std::map<std::string, std::string>;

/// A tensor that a file really holds.
struct Found {
  size_t file;
  const SafetensorsEntry* entry;
};

Error tensor_error(const std::string& tensor, const std::string& message) {
  return request_error(message).about_tensor(tensor);
}

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
      throw tensor_error(tensor, fmt::format("{}: the file of tensor {} is {}, not the name of a "
                                             ".safetensors file beside the index",
                                             file, in_quotes(tensor), shown(shard)));
    }
    result.emplace(tensor, shard.get<std::string>());
  }
  return result;
}

/// Which files make up the checkpoint, and what the index says about them (if there is one).
struct Listing {
  std::vector<std::string> files;
  std::optional<WeightMap> index;
};

Listing list_files(const fs::path& directory) {
  const bool has_single = fs::exists(directory / kSingleFile);
  const bool has_index = fs::exists(directory / kIndexFile);
  if (has_single && has_index) {
    throw request_error(fmt::format("{} holds both {} and {}, and they may differ",
                                    directory.string(), kSingleFile, kIndexFile),
                        "remove the one that is stale");
  }
  if (!has_single && !has_index) {
    throw request_error(
        fmt::format("{} holds neither {} nor {}", directory.string(), kSingleFile, kIndexFile),
        "--model needs a Hugging Face checkpoint directory or preset:NAME");
  }
  if (has_single) return {{kSingleFile}, std::nullopt};
  auto index = read_index(directory / kIndexFile);
  std::vector<std::string> files;
  for (const auto& [tensor, shard] : index) files.push_back(shard);
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return {std::move(files), std::move(index)};
}

class CheckpointSource final : public WeightSource {
 public:
  CheckpointSource(const fs::path& directory, std::optional<uint64_t> keep_layers)
      : directory_(directory),
        full_config_(parse_config(read_text(directory / kConfigFile, kMaxConfigBytes),
                                  (directory / kConfigFile).string())),
        catalogue_(make_catalogue(
            model_name(), keep_first_layers(full_config_, keep_layers.value_or(full_config_.layers),
                                            directory.string()))) {
    auto listing = list_files(directory);
    for (const auto& file : listing.files) files_.emplace_back(directory / file);
    find_tensors();
    if (listing.index) check_index(*listing.index);
    check_found();
    place_catalogue();
    found_.clear();
  }

  [[nodiscard]] const Catalogue& catalogue() const override { return catalogue_; }

  void read(uint32_t tensor, uint64_t first, std::span<std::byte> out) const override {
    const auto& place = places_.at(tensor);
    const auto& info = catalogue_.tensors().at(tensor);
    check_range(info, first, out.size());
    files_.at(place.file).file().read(place.offset_bytes + first * element_bytes(info.dtype), out);
  }

 private:
  struct Place {
    size_t file;
    uint64_t offset_bytes;
  };

  [[nodiscard]] std::string model_name() const {
    const auto absolute = fs::absolute(directory_).lexically_normal();
    const auto name = absolute.filename().empty() ? absolute.parent_path() : absolute;
    return name.filename().string();
  }

  [[nodiscard]] const std::string& file_name(size_t file) const {
    return files_.at(file).file().name();
  }

  void find_tensors() {
    for (size_t file = 0; file < files_.size(); ++file) {
      for (const auto& entry : files_[file].entries()) {
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
      const auto expected = (directory_ / shard).string();
      const auto at = found_.find(tensor);
      if (at == found_.end()) {
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
      if (index.contains(tensor) || is_ignored(tensor)) continue;
      throw tensor_error(tensor, fmt::format("{} holds tensor {}, which {} does not list",
                                             file_name(found.file), in_quotes(tensor), kIndexFile));
    }
  }

  /// Tensors beyond the config mean that the config is not this checkpoint's.
  void check_found() const {
    for (const auto& [tensor, found] : found_) {
      if (catalogue_.find(tensor) || is_ignored(tensor)) continue;
      throw tensor_error(
          tensor, fmt::format("{} holds tensor {}, which a model of this config.json does not have",
                              file_name(found.file), in_quotes(tensor)));
    }
  }

  void place_catalogue() {
    for (const auto& info : catalogue_.tensors()) {
      const auto at = found_.find(info.name);
      if (at == found_.end()) {
        throw tensor_error(info.name, fmt::format("{} has no tensor \"{}\", which its {} asks for",
                                                  directory_.string(), info.name, kConfigFile));
      }
      check_entry(info, at->second);
      places_.push_back({at->second.file, at->second.entry->offset_bytes});
    }
  }

  void check_entry(const TensorInfo& info, const Found& found) const {
    auto shape = std::vector<uint64_t>{info.rows};
    if (!info.is_vector) shape.push_back(info.cols);
    const auto& entry = *found.entry;
    if (entry.dtype == info.dtype && entry.shape == shape) return;
    throw tensor_error(
        info.name, fmt::format("{}: tensor \"{}\" is {} of shape [{}]; its {} asks for {} of [{}]",
                               file_name(found.file), info.name, dtype_name(entry.dtype),
                               fmt::join(entry.shape, ", "), kConfigFile, dtype_name(info.dtype),
                               fmt::join(shape, ", ")));
  }

  [[nodiscard]] bool is_ignored(const std::string& tensor) const {
    if (tensor == "lm_head.weight") return full_config_.tied_embeddings;
    return tensor.ends_with(".rotary_emb.inv_freq") || is_in_dropped_layer(tensor);
  }

  [[nodiscard]] bool is_in_dropped_layer(std::string_view tensor) const {
    constexpr std::string_view kPrefix = "model.layers.";
    if (!tensor.starts_with(kPrefix)) return false;
    tensor.remove_prefix(kPrefix.size());
    uint64_t layer = 0;
    const auto* last = tensor.data() + tensor.size();
    const auto [end, error] = std::from_chars(tensor.data(), last, layer);
    return error == std::errc{} && end != last && *end == '.' &&
           layer >= catalogue_.config().layers &&
           layer < full_config_.layers + full_config_.mtp_layers;
  }

  fs::path directory_;
  ModelConfig full_config_;  ///< With all layers of the files, those for MTP too.
  Catalogue catalogue_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Found> found_;  ///< Only while opening.
  std::vector<Place> places_;           ///< By catalogue index.
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

}  // namespace

std::unique_ptr<WeightSource> open_checkpoint(const fs::path& directory,
                                              std::optional<uint64_t> keep_layers) {
  try {
    if (!fs::is_directory(directory)) {
      throw request_error(fmt::format("there is no directory {}", directory.string()),
                          "--model needs a Hugging Face checkpoint directory or preset:NAME");
    }
    return std::make_unique<CheckpointSource>(directory, keep_layers);
  } catch (const fs::filesystem_error& error) {
    throw request_error(
        fmt::format("cannot open {}: {}", directory.string(), error.code().message()));
  }
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
