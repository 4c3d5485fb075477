// Every family against its own roles, and against what transformers saves (transformers_tables/).
#include "model/families/family.hpp"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "model/catalogue.hpp"
#include "model/input_file.hpp"
#include "model/presets.hpp"

using namespace awex;

namespace {

using Shapes = std::map<std::string, std::string>;

/// "BF16 [4,2]" by name.
Shapes shapes_of(const Catalogue& catalogue) {
  Shapes shapes;
  for (const auto& tensor : catalogue.tensors()) {
    shapes[tensor.name] = fmt::format("{} {}", dtype_name(tensor.dtype), tensor.rows);
    if (!tensor.is_vector) shapes[tensor.name] += fmt::format(" {}", tensor.cols);
  }
  return shapes;
}

Shapes read_table(const std::filesystem::path& file) {
  Shapes shapes;
  std::ifstream in(file);
  REQUIRE_MESSAGE(in.is_open(), file.string());
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with('#')) continue;
    const auto space = line.find(' ');
    shapes[line.substr(0, space)] = line.substr(space + 1);
  }
  return shapes;
}

/// Checks one model's roles: they are there, of the right layer, and none is there twice.
void check_roles(const Catalogue& catalogue) {
  std::set<std::tuple<std::optional<uint32_t>, std::optional<uint32_t>, TensorRole>> seen;
  uint32_t next_expert = 0;
  for (const auto& tensor : catalogue.tensors()) {
    CAPTURE(tensor.name);
    CHECK(tensor.role != TensorRole::kNone);
    CHECK(seen.emplace(tensor.layer, tensor.expert, tensor.role).second);
    const bool in_layer = tensor.name.starts_with("model.layers.");
    CHECK(tensor.layer.has_value() == in_layer);
    if (in_layer) CHECK(tensor.name.starts_with(fmt::format("model.layers.{}.", *tensor.layer)));
    CHECK(is_norm(tensor.role) == tensor.name.ends_with("norm.weight"));
    if (!tensor.expert) {
      next_expert = 0;
      continue;
    }
    CHECK(tensor.name.find(fmt::format(".experts.{}.", *tensor.expert)) != std::string::npos);
    CHECK(*tensor.expert == next_expert);
    if (tensor.role == TensorRole::kExpertDown) ++next_expert;
  }
}

}  // namespace

TEST_CASE("every tensor of every family has a role of its own, and experts come in order") {
  for (const auto& family : families()) {
    CAPTURE(family.name);
    CHECK_FALSE(family.presets.empty());
    for (const auto& [name, config] : family.presets) {
      CAPTURE(name);
      CHECK(config.family == family.name);
      check_roles(make_catalogue(name, keep_first_layers(config, 4, name)));
    }
  }
}

TEST_CASE("catalogues have the tensors that transformers saves") {
  std::set<std::string> missing;
  for (const auto& family : families()) missing.insert(family.name);
  for (const auto& entry : std::filesystem::directory_iterator(AWEX_TRANSFORMERS_TABLES)) {
    if (entry.path().extension() != ".json") continue;
    CAPTURE(entry.path().string());
    const auto config =
        parse_config(read_text(entry.path(), 1U << 20), entry.path().filename().string());
    missing.erase(config.family);
    auto table = entry.path();
    const auto expected = read_table(table.replace_extension(".txt"));
    const auto got = shapes_of(make_catalogue("m", config));
    for (const auto& [name, shape] : expected) {
      CAPTURE(name);
      CHECK(got.contains(name));
      if (got.contains(name)) CHECK(got.at(name) == shape);
    }
    CHECK(got.size() == expected.size());
  }
  CHECK_MESSAGE(missing.empty(), fmt::format("no table of {}", fmt::join(missing, ", ")));
}

TEST_CASE("names of families are of one class each, and no two share one") {
  std::set<std::string> types;
  std::set<std::string> classes;
  for (const auto& family : families()) {
    CHECK(types.insert(family.name).second);
    for (const auto& other : family.other_types) CHECK(types.insert(other).second);
    CHECK(classes.insert(family.class_name).second);
  }
}
