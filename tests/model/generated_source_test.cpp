#include "model/generated_source.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>
#include <vector>

#include "base/error.hpp"
#include "model/convert.hpp"
#include "model/digest.hpp"
#include "model/presets.hpp"
#include "model/refusal.hpp"

using namespace awex;

namespace {

std::vector<uint16_t> read_elements(const WeightSource& source, uint32_t tensor, uint64_t first,
                                    uint64_t count) {
  std::vector<uint16_t> elements(count, 0xffff);
  source.read(tensor, first, std::as_writable_bytes(std::span(elements)));
  return elements;
}

std::vector<uint16_t> read_all(const WeightSource& source, const char* name) {
  const auto tensor = source.catalogue().index_of(name);
  return read_elements(source, tensor, 0, source.catalogue().tensors()[tensor].elements());
}

std::vector<float> read_floats(const WeightSource& source, const char* name, uint64_t first,
                               uint64_t count) {
  std::vector<float> elements(count);
  source.read(source.catalogue().index_of(name), first,
              std::as_writable_bytes(std::span(elements)));
  return elements;
}

std::unique_ptr<WeightSource> generate_tiny(DType dtype) {
  auto config = preset_config("tiny-dense");
  config.layers = 1;
  config.dtype = dtype;
  return generate_weights(make_catalogue("m", config));
}

}  // namespace

TEST_CASE("an element's value does not depend on where the reading begins") {
  const auto source = open_model("preset:tiny-moe", std::nullopt);
  const auto tensor = source->catalogue().index_of("lm_head.weight");
  const auto all = read_elements(*source, tensor, 0, 5000);
  for (const uint64_t first : {0, 1, 3, 4, 511, 512, 513, 1023, 2047}) {
    for (const uint64_t count : {1, 2, 5, 511, 512, 513, 2000}) {
      const auto part = read_elements(*source, tensor, first, count);
      CHECK(std::equal(part.begin(), part.end(), all.begin() + static_cast<ptrdiff_t>(first)));
    }
  }
}

TEST_CASE("values are those of every machine and every release") {
  ThreadPool pool(1);
  const auto source = open_model("preset:tiny-dense", std::nullopt);
  CHECK(model_digest(source->catalogue(), digest_source(*source, pool)) == 0xb0f04919690e8268U);
  const auto index = [&](const char* name) { return source->catalogue().index_of(name); };
  CHECK(read_elements(*source, index("model.norm.weight"), 0, 3) ==
        std::vector<uint16_t>{0x3f82, 0x3f77, 0x3f81});
  CHECK(read_elements(*source, index("lm_head.weight"), 0, 3) ==
        std::vector<uint16_t>{0x3d05, 0xbd4c, 0xbcf0});
}

TEST_CASE("fp32 biases stand among 16-bit weights, with values of their own") {
  const auto source = open_model("preset:tiny-mla", 2);
  const char* name = "model.layers.1.mlp.gate.e_score_correction_bias";
  const auto bias = read_floats(*source, name, 0, 12);
  for (const float value : bias) CHECK(std::abs(value) <= 0.05F);
  CHECK(std::set<float>(bias.begin(), bias.end()).size() == 12);
  CHECK(read_floats(*source, name, 7, 3) ==
        std::vector<float>(bias.begin() + 7, bias.begin() + 10));
  CHECK(std::bit_cast<uint32_t>(bias[0]) == 0x3c68e000U);
  CHECK(std::bit_cast<uint32_t>(bias[3]) == 0x3ce3b667U);
  std::vector<float> room(2);
  const auto tensor = source->catalogue().index_of(name);
  CHECK_THROWS_AS(source->read(tensor, 11, std::as_writable_bytes(std::span(room))), Error);
}

TEST_CASE("16-bit weights are the fp32 weights, rounded") {
  const auto f32 = generate_tiny(DType::kF32);
  const auto f16 = generate_tiny(DType::kF16);
  const auto bf16 = generate_tiny(DType::kBf16);
  for (const char* name : {"lm_head.weight", "model.layers.0.input_layernorm.weight"}) {
    const auto halves = read_all(*f16, name);
    const auto brains = read_all(*bf16, name);
    const auto floats = read_floats(*f32, name, 0, halves.size());
    uint64_t inexact = 0;
    for (size_t i = 0; i < floats.size(); ++i) {
      REQUIRE(halves[i] == f32_to_f16(floats[i]));
      REQUIRE(brains[i] == f32_to_bf16(floats[i]));
      if (bf16_to_f32(brains[i]) != floats[i]) ++inexact;
    }
    CHECK(inexact > floats.size() / 2);
  }
}

TEST_CASE("dtypes that cannot be generated are refused by name") {
  CHECK_THROWS_WITH_AS(
      (void)generate_weights(Catalogue("m", {}, {{"t", DType::kF8E4M3, 2, 2, false}})),
      "cannot generate F8_E4M3 weights", Error);
}

TEST_CASE("weights are spread around 0 and norms around 1") {
  const auto source = open_model("preset:tiny-dense", std::nullopt);
  const auto weights = read_all(*source, "model.layers.3.mlp.gate_proj.weight");
  double sum = 0;
  double squares = 0;
  for (const auto bits : weights) {
    const double value = bf16_to_f32(bits);
    REQUIRE(std::abs(value) <= 0.0501);
    sum += value;
    squares += value * value;
  }
  const auto count = static_cast<double>(weights.size());
  CHECK(std::abs(sum / count) < 0.001);
  CHECK(std::sqrt(squares / count) == doctest::Approx(0.05 / std::sqrt(3.0)).epsilon(0.02));
  const auto norm = read_all(*source, "model.layers.3.self_attn.q_norm.weight");
  for (const auto bits : norm) CHECK(std::abs(bf16_to_f32(bits) - 1) < 0.05);
  CHECK(std::set<uint16_t>(norm.begin(), norm.end()).size() > 3);
}

TEST_CASE("no two tensors hold the same values") {
  const auto source = open_model("preset:tiny-moe", std::nullopt);
  std::set<std::vector<uint16_t>> beginnings;
  const auto& tensors = source->catalogue().tensors();
  uint32_t matrices = 0;
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].is_vector) continue;
    ++matrices;
    beginnings.insert(read_elements(*source, i, 0, 8));
  }
  CHECK(beginnings.size() == matrices);
}

TEST_CASE("a preset keeps its first layers, with the same values") {
  const auto whole = open_model("preset:tiny-dense", std::nullopt);
  const auto kept = open_model("preset:tiny-dense", 2);
  CHECK(kept->catalogue().config().layers == 2);
  CHECK_FALSE(kept->catalogue().find("model.layers.2.mlp.up_proj.weight"));
  const char* name = "model.layers.1.mlp.up_proj.weight";
  CHECK(read_all(*kept, name) == read_all(*whole, name));
  test::check_refused([] { (void)open_model("preset:tiny-dense", 13); }, {"--layers 13"});
  test::check_refused([] { (void)open_model("preset:tiny-dens", std::nullopt); }, {"tiny-dens"});
}

TEST_CASE("reading beyond a tensor or a part of an element fails") {
  const auto source = open_model("preset:tiny-dense", std::nullopt);
  const auto norm = source->catalogue().index_of("model.norm.weight");
  std::vector<std::byte> room(2 * 96);
  source->read(norm, 96, std::span(room).first(0));
  CHECK_THROWS_AS(source->read(norm, 1, room), Error);
  CHECK_THROWS_AS(source->read(norm, 97, std::span(room).first(0)), Error);
  CHECK_THROWS_AS(source->read(norm, ~uint64_t{0}, std::span(room).first(2)), Error);
  CHECK_THROWS_AS(source->read(norm, 0, std::span(room).first(3)), Error);
}

TEST_CASE("digests of a model do not depend on the number of threads") {
  const auto source = open_model("preset:qwen3-0.6b", 1);
  ThreadPool one(1);
  ThreadPool three(3);
  const auto digests = digest_source(*source, one);
  CHECK(digests == digest_source(*source, three));
  const auto embedding = source->catalogue().index_of("model.embed_tokens.weight");
  const auto all = read_all(*source, "model.embed_tokens.weight");
  CHECK(digests[embedding] == digest_elements(tensor_key("model.embed_tokens.weight"), 2, 0,
                                              std::as_bytes(std::span(all))));
}
