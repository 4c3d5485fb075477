// For comparisons with real engines:
// `layout_tool list CONFIG SPEC RANKS` prints "rank R", then the engine's "name rows cols" of every
// parameter that the layout gives this rank.
// `layout_tool gather CONFIG SPEC RANKS FROM TO` writes the Hugging Face checkpoint TO from
// FROM/rank-R.safetensors, where every rank's parameters have the engine's own names.
// `layout_tool pieces CONFIG SPEC RANKS` prints "tensor NAME DTYPE ROWS COLS" for every tensor of
// the model; then "rank R", the "parameter NAME DTYPE ROWS COLS" of each, and after it its pieces:
// "piece TENSOR ROW-BEGIN ROW-END COLUMN-BEGIN COLUMN-END OFFSET STRIDE", the latter two in
// elements; at the end "note TEXT" for each of the layout's notes. CONFIG is a Hugging Face
// config.json; SPEC one of a trainer, for pieces one of inference.
#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "model/checkpoint.hpp"
#include "model/input_file.hpp"
#include "model/safetensors.hpp"
#include "model/weights.hpp"

namespace {

using namespace awex;

constexpr uint64_t kMaxConfigBytes = 1U << 20;

/// The weights that the ranks of a layout hold between them, in memory.
class GatheredWeights final : public WeightSource {
 public:
  explicit GatheredWeights(const Catalogue& catalogue) : catalogue_(catalogue) {
    for (const TensorInfo& tensor : catalogue.tensors()) {
      bytes_.emplace_back(tensor.bytes());
      held_.emplace_back(tensor.elements(), false);
    }
  }

  [[nodiscard]] const Catalogue& catalogue() const override { return catalogue_; }

  void read(uint32_t tensor, uint64_t first, std::span<std::byte> out) const override {
    const TensorInfo& info = catalogue_.tensors().at(tensor);
    check_range(info, first, out.size());
    std::memcpy(out.data(), bytes_[tensor].data() + first * element_bytes(info.dtype), out.size());
  }

  /// Adds what one rank holds. Throws unless the file has just the layout's parameters and repeats
  /// what other ranks hold as well.
  void add(const RankLayout& layout, const SafetensorsFile& file) {
    std::map<std::string, const SafetensorsEntry*> entries;
    for (const SafetensorsEntry& entry : file.entries()) entries[entry.name] = &entry;
    std::vector<std::vector<std::byte>> values;
    for (const Parameter& parameter : layout.parameters) {
      const auto entry = entries.find(parameter.name);
      if (entry == entries.end()) throw request_error("the engine has no " + parameter.name);
      values.push_back(read_values(file, *entry->second, parameter));
      entries.erase(entry);
    }
    if (!entries.empty()) throw request_error("the layout has no " + entries.begin()->first);
    for (const Shard& shard : layout.shards) {
      add_shard(shard, layout.parameters[shard.parameter], values[shard.parameter]);
    }
  }

  /// Throws unless every element of the model was added.
  void check_complete() const {
    for (size_t tensor = 0; tensor < held_.size(); ++tensor) {
      const auto missing = std::count(held_[tensor].begin(), held_[tensor].end(), false);
      if (missing == 0) continue;
      throw request_error(fmt::format("no rank holds {} of the {} elements of {}", missing,
                                      held_[tensor].size(), catalogue_.tensors()[tensor].name));
    }
  }

 private:
  static std::vector<std::byte> read_values(const SafetensorsFile& file,
                                            const SafetensorsEntry& entry,
                                            const Parameter& parameter) {
    if (entry.dtype != parameter.dtype || entry.bytes != parameter.bytes()) {
      throw request_error(fmt::format(
          "{} is {} bytes of {}, the engine's is {} bytes of {}", parameter.name, parameter.bytes(),
          dtype_name(parameter.dtype), entry.bytes, dtype_name(entry.dtype)));
    }
    std::vector<std::byte> values(entry.bytes);
    file.file().read(entry.offset_bytes, values);
    return values;
  }

  void add_shard(const Shard& shard, const Parameter& parameter,
                 const std::vector<std::byte>& values) {
    const TensorInfo& info = catalogue_.tensors()[shard.tensor];
    const uint64_t size = element_bytes(info.dtype);
    for (uint64_t row = shard.box.rows.begin; row < shard.box.rows.end; ++row) {
      const uint64_t from = shard.offset_bytes - parameter.offset_bytes +
                            (row - shard.box.rows.begin) * shard.row_stride * size;
      for (uint64_t col = 0; col < shard.box.cols.size(); ++col) {
        add_element(shard, info, row * info.cols + shard.box.cols.begin + col,
                    values.data() + from + col * size);
      }
    }
  }

  void add_element(const Shard& shard, const TensorInfo& info, uint64_t element,
                   const std::byte* value) {
    const uint64_t size = element_bytes(info.dtype);
    std::byte* const to = bytes_[shard.tensor].data() + element * size;
    if (held_[shard.tensor][element] && std::memcmp(to, value, size) != 0) {
      throw request_error(fmt::format("element {} of {} differs between two ranks that hold it",
                                      element, info.name));
    }
    std::memcpy(to, value, size);
    held_[shard.tensor][element] = true;
  }

  const Catalogue& catalogue_;
  std::vector<std::vector<std::byte>> bytes_;  ///< By tensor.
  std::vector<std::vector<bool>> held_;        ///< By tensor and element.
};

void print_parameters(const Layout& layout) {
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
    fmt::print("rank {}\n", rank);
    for (const Parameter& parameter : layout.rank_layout(rank).parameters) {
      fmt::print("{} {} {}\n", parameter.name, parameter.rows, parameter.cols);
    }
  }
}

void print_pieces(const std::string& spec, const Catalogue& model, uint32_t ranks) {
  const Catalogue held = held_catalogue(spec, model);
  const auto layout = make_inference_layout(spec, held, ranks);
  for (const TensorInfo& tensor : held.tensors()) {
    fmt::print("tensor {} {} {} {}\n", tensor.name, dtype_name(tensor.dtype), tensor.rows,
               tensor.cols);
  }
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    fmt::print("rank {}\n", rank);
    const RankLayout mine = layout->rank_layout(rank);
    for (uint32_t index = 0; index < mine.parameters.size(); ++index) {
      const Parameter& parameter = mine.parameters[index];
      fmt::print("parameter {} {} {} {}\n", parameter.name, dtype_name(parameter.dtype),
                 parameter.rows, parameter.cols);
      for (const Shard& shard : mine.shards) {
        if (shard.parameter != index) continue;
        const uint64_t offset =
            (shard.offset_bytes - parameter.offset_bytes) / element_bytes(parameter.dtype);
        fmt::print("piece {} {} {} {} {} {} {}\n", held.tensors()[shard.tensor].name,
                   shard.box.rows.begin, shard.box.rows.end, shard.box.cols.begin,
                   shard.box.cols.end, offset, shard.row_stride);
      }
    }
  }
  for (const std::string& note : layout->notes()) fmt::print("note {}\n", note);
}

void gather(const Layout& layout, const Catalogue& catalogue, const std::filesystem::path& from,
            const std::filesystem::path& to) {
  GatheredWeights weights(catalogue);
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
    const auto path = from / fmt::format("rank-{}.safetensors", rank);
    weights.add(layout.rank_layout(rank), SafetensorsFile(path));
  }
  weights.check_complete();
  ThreadPool pool(2);
  write_checkpoint(weights, to, kDefaultShardBytes, pool);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (!((command == "list" || command == "pieces") && argc == 5) &&
      !(command == "gather" && argc == 7)) {
    fmt::print(
        stderr,
        "usage: layout_tool list|pieces CONFIG SPEC RANKS | gather CONFIG SPEC RANKS FROM TO\n");
    return 2;
  }
  try {
    const Catalogue catalogue =
        make_catalogue(argv[2], parse_config(read_text(argv[2], kMaxConfigBytes), argv[2]));
    const auto ranks = static_cast<uint32_t>(std::stoul(argv[4]));
    if (command == "pieces") {
      print_pieces(argv[3], catalogue, ranks);
      return 0;
    }
    const auto layout = make_trainer_layout(argv[3], catalogue, ranks);
    if (command == "list") {
      print_parameters(*layout);
    } else {
      gather(*layout, catalogue, argv[5], argv[6]);
    }
  } catch (const Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
