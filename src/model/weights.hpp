#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "model/catalogue.hpp"

namespace awex {

class SafetensorsFile;

/// Which model, as a user names it: "DIR" of a checkpoint, or "preset:NAME" of a published shape.
/// Made once of what was typed; a text in code is one wherever a model is asked for.
class ModelName {
 public:
  ModelName() = default;
  ModelName(std::string text);
  ModelName(const char* text) : ModelName(std::string(text)) {}

  [[nodiscard]] bool empty() const { return name_.empty() && !is_preset_; }
  [[nodiscard]] bool is_preset() const { return is_preset_; }
  /// The directory, or the preset's name.
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  std::string name_;
  bool is_preset_ = false;
};

/// Where a model's weights come from: the files of a checkpoint, or values generated for a preset.
/// Const and safe to read from several threads at once.
class WeightSource {
 public:
  WeightSource() = default;
  WeightSource(const WeightSource&) = delete;
  WeightSource& operator=(const WeightSource&) = delete;
  WeightSource(WeightSource&&) = delete;
  WeightSource& operator=(WeightSource&&) = delete;
  virtual ~WeightSource() = default;

  [[nodiscard]] virtual const Catalogue& catalogue() const = 0;

  /// Writes elements [first, first + out.size() / element size) of a canonical tensor, in row-major
  /// order of its whole shape, in the catalogue's dtype, little endian. Throws a run-time error for
  /// elements that the tensor does not have, and when a disk fails.
  virtual void read(uint32_t tensor, uint64_t first, std::span<std::byte> out) const = 0;

  /// How many bytes such a read counts as done (base/work_progress.hpp): of a checkpoint those that
  /// the files store, which are others than the tensor's where they are cast.
  [[nodiscard]] virtual uint64_t bytes_to_read(uint32_t tensor, uint64_t first,
                                               uint64_t elements) const;

  /// The files of a checkpoint that hold what is read, by name; none of generated weights. They
  /// live as long as the source.
  [[nodiscard]] virtual const std::vector<SafetensorsFile>& files() const;

  /// What a user should know about how the weights are read, for one rank to say: a line each.
  [[nodiscard]] virtual std::vector<std::string> remarks() const { return {}; }
};

/// Opens a checkpoint (config.json and *.safetensors, single or sharded with index) or a preset.
/// `keep_layers` keeps the first N layers only (tensors of later layers are ignored). Everything is
/// validated before this returns; throws a request error otherwise.
[[nodiscard]] std::unique_ptr<WeightSource> open_model(const ModelName& model,
                                                       std::optional<uint64_t> keep_layers);

/// What open_model's source has as its catalogue, and remarks as WeightSource has them. Needs no
/// weights, only a directory's config.json.
struct ModelShape {
  Catalogue catalogue;
  std::vector<std::string> remarks;
};
[[nodiscard]] ModelShape read_model_shape(const ModelName& model,
                                          std::optional<uint64_t> keep_layers);

/// Throws a run-time error that names the tensor unless `bytes` are whole elements of it, from
/// element `first` on. For implementations of WeightSource::read.
void check_range(const TensorInfo& tensor, uint64_t first, uint64_t bytes);

/// Consecutive elements of a tensor, on their way through a worker thread.
struct WeightChunk {
  uint32_t tensor = 0;
  uint64_t first = 0;  ///< Canonical index of the first element.
  std::span<const std::byte> bytes;
};

/// Reads all elements of the `count` tensors from index `first_tensor` on, in chunks of a few
/// megabytes, and hands each chunk to `work` once, in any order and from all threads of the pool.
/// Throws what reading and `work` throw.
void for_each_chunk(const WeightSource& source, uint32_t first_tensor, uint32_t count,
                    ThreadPool& pool, const std::function<void(const WeightChunk&)>& work);

/// The digest of every tensor (docs/digest.md), by catalogue index. Reads the whole model.
[[nodiscard]] std::vector<uint64_t> digest_source(const WeightSource& source, ThreadPool& pool);

/// The model's digest from those of its tensors, given by catalogue index.
[[nodiscard]] uint64_t model_digest(const Catalogue& catalogue,
                                    std::span<const uint64_t> tensor_digests);

}  // namespace awex
