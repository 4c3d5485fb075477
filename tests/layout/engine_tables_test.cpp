// Layouts of published models against tables of what the real engines create (engine_tables/).
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "model/catalogue.hpp"
#include "model/config.hpp"
#include "model/input_file.hpp"
#include "model/presets.hpp"

namespace awex::test {
namespace {

using Shape = std::vector<uint64_t>;

struct Held {
  Shape shape;
  std::string dtype;  ///< Empty where the table does not say.
};
using Parameters = std::map<std::string, Held>;

/// One parallel setting of one model.
struct Table {
  std::string model;
  std::string spec;
  std::vector<Parameters> ranks;
};

/// "7" or "3-7" -> first and last.
std::pair<uint64_t, uint64_t> read_interval(const std::string& text) {
  const size_t dash = text.find('-');
  const uint64_t first = std::stoull(text);
  return {first, dash == std::string::npos ? first : std::stoull(text.substr(dash + 1))};
}

/// "a.{0-1}.b{2-3}" -> all four names.
std::vector<std::string> spell_out(const std::string& name) {
  const size_t open = name.find('{');
  if (open == std::string::npos) return {name};
  const size_t close = name.find('}', open);
  const auto [first, last] = read_interval(name.substr(open + 1, close - open - 1));
  std::vector<std::string> names;
  for (const std::string& rest : spell_out(name.substr(close + 1))) {
    for (uint64_t i = first; i <= last; ++i) {
      names.push_back(fmt::format("{}{}{}", name.substr(0, open), i, rest));
    }
  }
  return names;
}

class TableReader {
 public:
  std::vector<Table> read(const std::filesystem::path& file) && {
    std::ifstream in(file);
    REQUIRE_MESSAGE(in.is_open(), file.string());
    for (std::string line; std::getline(in, line);) {
      CAPTURE(line);
      std::istringstream words(line);
      std::string first;
      if (words >> first && first[0] != '#') read_line(first, words);
    }
    return std::move(tables_);
  }

 private:
  void read_line(const std::string& first, std::istringstream& words) {
    if (first == "model") {
      words >> model_;
    } else if (first == "spec") {
      tables_.push_back({.model = model_, .spec = {}, .ranks = {}});
      words >> tables_.back().spec;
    } else if (first == "ranks") {
      size_t ranks = 0;
      words >> ranks;
      tables_.back().ranks.resize(ranks);
    } else if (first == "on") {
      on_.clear();
      for (std::string text; words >> text;) on_.push_back(read_interval(text));
    } else if (first == "dtype") {
      words >> usual_dtype_;
    } else {
      add(first, read_held(words));
    }
  }

  /// "12 34" or "12 34 F32".
  Held read_held(std::istringstream& words) const {
    Held held{.shape = {}, .dtype = usual_dtype_};
    for (std::string word; words >> word;) {
      if (std::isdigit(static_cast<unsigned char>(word[0])) != 0) {
        held.shape.push_back(std::stoull(word));
      } else {
        held.dtype = word;
      }
    }
    REQUIRE(!held.shape.empty());
    return held;
  }

  void add(const std::string& names, const Held& held) {
    const std::vector<std::string> all = spell_out(names);
    for (const auto& [first, last] : on_) {
      for (uint64_t rank = first; rank <= last; ++rank) {
        for (const std::string& name : all) {
          REQUIRE_MESSAGE(tables_.back().ranks.at(rank).emplace(name, held).second, name);
        }
      }
    }
  }

  std::string model_;
  std::string usual_dtype_;
  std::vector<std::pair<uint64_t, uint64_t>> on_;
  std::vector<Table> tables_;
};

/// A layout's matrix is the engine's tensor with all dimensions but the last as rows; a vector has
/// one column.
std::pair<uint64_t, uint64_t> matrix_of(const Shape& shape) {
  uint64_t elements = 1;
  for (const uint64_t size : shape) elements *= size;
  const uint64_t cols = shape.size() == 1 ? 1 : shape.back();
  return {elements / cols, cols};
}

/// The first difference, or empty.
std::string compare(const RankLayout& layout, const Parameters& expected) {
  std::set<std::string> seen;
  for (const Parameter& parameter : layout.parameters) {
    const auto found = expected.find(parameter.name);
    if (found == expected.end()) return "the engine has no " + parameter.name;
    seen.insert(parameter.name);
    const auto [rows, cols] = matrix_of(found->second.shape);
    if (parameter.rows != rows || parameter.cols != cols) {
      return fmt::format("{} is {} x {}, the engine's is {} x {}", parameter.name, parameter.rows,
                         parameter.cols, rows, cols);
    }
    const std::string& dtype = found->second.dtype;
    if (!dtype.empty() && dtype_name(parameter.dtype) != dtype) {
      return fmt::format("{} is {}, the engine's is {}", parameter.name,
                         dtype_name(parameter.dtype), dtype);
    }
  }
  for (const auto& [name, held] : expected) {
    if (seen.count(name) == 0) return "the layout has no " + name;
  }
  return {};
}

/// Small models lie beside the tables; the others are presets.
ModelConfig config_of(const std::string& model) {
  const auto file = std::filesystem::path(AWEX_ENGINE_TABLES) / "models" / (model + ".json");
  if (!std::filesystem::exists(file)) return preset_config(model);
  return parse_config(read_text(file, 1U << 20), file.string());
}

void check_table(const Table& table) {
  CAPTURE(table.model);
  CAPTURE(table.spec);
  const Catalogue catalogue = make_catalogue(table.model, config_of(table.model));
  const auto ranks = static_cast<uint32_t>(table.ranks.size());
  const bool trainer = table.spec.starts_with("megatron");
  const Catalogue held = trainer ? catalogue : held_catalogue(table.spec, catalogue);
  const auto layout = trainer ? make_trainer_layout(table.spec, catalogue, ranks)
                              : make_inference_layout(table.spec, held, ranks);
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    CAPTURE(rank);
    const std::string difference = compare(layout->rank_layout(rank), table.ranks[rank]);
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}

}  // namespace

TEST_CASE("models are laid out as the engines' own code creates them") {
  std::map<std::string, int> settings;
  for (const auto& entry : std::filesystem::directory_iterator(AWEX_ENGINE_TABLES)) {
    if (entry.path().extension() != ".txt") continue;
    CAPTURE(entry.path().filename().string());
    for (const Table& table : TableReader().read(entry.path())) {
      check_table(table);
      ++settings[entry.path().stem().string()];
    }
  }
  for (const char* engine : {"megatron", "vllm"}) {
    for (const char* model : {"qwen3-8b", "qwen3-30b-a3b", "deepseek-v3"}) {
      CAPTURE(engine);
      CAPTURE(model);
      CHECK(settings[fmt::format("{}_{}", engine, model)] >= 2);
    }
  }
  for (const char* model : {"llama", "qwen2", "qwen3", "qwen3-moe", "deepseek", "glm"}) {
    CAPTURE(model);
    CHECK(settings[fmt::format("vllm-0.32_{}", model)] >= 6);
    CHECK(settings[fmt::format("megatron-core_small-{}", model)] >= 2);
    CHECK(settings[fmt::format("sglang-0.5.23_{}", model)] >= 13);
  }
  for (const char* model : {"qwen3-fp8", "qwen3-moe-fp8", "deepseek-fp8", "glm-fp8",
                            "llama-tied-stored", "qwen3-moe-tied-stored"}) {
    CAPTURE(model);
    CHECK(settings[fmt::format("vllm-0.32_{}", model)] >= 1);
  }
}

}  // namespace awex::test
