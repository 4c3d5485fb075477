#include "layout/held_catalogue.hpp"

#include <utility>

#include "base/checked.hpp"

namespace awex {
namespace {

/// As config.json of quantised checkpoints has it (weight_block_size).
constexpr uint32_t kUsualBlock = 128;

struct NamedDType {
  const char* name;
  DType dtype;
};
constexpr NamedDType kDTypes[] = {
    {"bf16", DType::kBf16}, {"fp16", DType::kF16}, {"fp32", DType::kF32}, {"fp8", DType::kF8E4M3}};

const char* name_of(DType dtype) {
  for (const auto& known : kDTypes) {
    if (known.dtype == dtype) return known.name;
  }
  throw runtime_error(fmt::format("no option of a layout says dtype {}", dtype_name(dtype)));
}

/// The dtype that an option names out of `choices`, if it is given.
std::optional<DType> read_dtype(const EngineSpec& spec, const std::string& key,
                                const std::vector<std::string>& choices) {
  if (!spec.text_of(key)) return std::nullopt;
  const auto name = spec.choice(key, choices);
  for (const auto& known : kDTypes) {
    if (name == known.name) return known.dtype;
  }
  return std::nullopt;
}

/// models/glm4_moe.py and models/glm4_moe_lite.py of both engines create the router in fp32.
bool keeps_router_in_fp32(const EngineSpec& spec, const ModelConfig& config) {
  const bool has_own_classes = spec.engine() == "sglang" || spec.engine() == "vllm";
  return has_own_classes && (config.family == "glm4_moe" || config.family == "glm4_moe_lite");
}

/// What dtype= makes of a tensor.
DType main_dtype_of(std::optional<DType> main, const TensorInfo& tensor) {
  if (!main || tensor.role == TensorRole::kRouterBias) return tensor.source_dtype();
  if (*main == DType::kF8E4M3 && !is_projection(tensor.role)) return tensor.source_dtype();
  return *main;
}

TensorInfo scales_of(const TensorInfo& tensor, uint32_t block) {
  return {.name = tensor.name + "_scale_inv",
          .dtype = DType::kF32,
          .rows = ceil_div(tensor.rows, block),
          .cols = ceil_div(tensor.cols, block),
          .role = TensorRole::kScales,
          .layer = tensor.layer,
          .expert = tensor.expert};
}

}  // namespace

DTypeRules DTypeRules::read(const EngineSpec& spec, const ModelConfig& config) {
  DTypeRules rules{.main = read_dtype(spec, "dtype", {"bf16", "fp16", "fp32", "fp8"}),
                   .router = read_dtype(spec, "router_dtype", {"bf16", "fp16", "fp32"})};
  const auto block = spec.count("block");
  if (rules.main == DType::kF8E4M3) {
    rules.block = block.value_or(kUsualBlock);
  } else if (block) {
    throw request_error(
        fmt::format("\"{}\": block={} is for blocks that share an fp8 scale", spec.text(), *block),
        "add dtype=fp8, or leave block out");
  }
  if (rules.main == config.dtype) rules.main.reset();
  const DType like_the_rest = rules.block > 0 ? config.dtype : rules.main.value_or(config.dtype);
  const DType usual = keeps_router_in_fp32(spec, config) ? DType::kF32 : like_the_rest;
  rules.says_router = rules.router && *rules.router != usual;
  if (!rules.router) rules.router = usual;
  if (!rules.says_router && rules.router == like_the_rest) rules.router.reset();
  return rules;
}

DType DTypeRules::dtype_of(const TensorInfo& tensor) const {
  return router && tensor.role == TensorRole::kRouter ? *router : main_dtype_of(main, tensor);
}

std::string DTypeRules::text() const {
  std::string text;
  if (main) text += fmt::format(",dtype={}", name_of(*main));
  if (says_router) text += fmt::format(",router_dtype={}", name_of(*router));
  if (block > 0 && block != kUsualBlock) text += fmt::format(",block={}", block);
  return text;
}

Catalogue held_catalogue(const EngineSpec& inference, const Catalogue& model) {
  const auto rules = DTypeRules::read(inference, model.config());
  std::vector<TensorInfo> tensors = model.tensors();
  std::vector<TensorInfo> scales;
  for (auto& tensor : tensors) {
    const DType held = rules.dtype_of(tensor);
    if (held == tensor.dtype) continue;
    tensor.trainer_dtype = std::exchange(tensor.dtype, held);
    if (held != DType::kF8E4M3) continue;
    tensor.scaling = {narrow<uint32_t>(tensors.size() + scales.size()), rules.block};
    scales.push_back(scales_of(tensor, rules.block));
  }
  tensors.insert(tensors.end(), std::make_move_iterator(scales.begin()),
                 std::make_move_iterator(scales.end()));
  return {model.model_name(), model.config(), std::move(tensors)};
}

uint32_t model_tensors(const Catalogue& held) {
  for (const auto& tensor : held.tensors()) {
    if (tensor.scaling) return tensor.scaling->scales;
  }
  return narrow<uint32_t>(held.tensors().size());
}

void check_held(const DTypeRules& rules, const Catalogue& held) {
  const uint32_t own = model_tensors(held);
  for (uint32_t index = 0; index < own; ++index) {
    const auto& tensor = held.tensors()[index];
    const uint32_t block = tensor.scaling ? tensor.scaling->block : 0;
    const DType wanted = rules.dtype_of(tensor);
    if (tensor.dtype == wanted && block == (wanted == DType::kF8E4M3 ? rules.block : 0)) continue;
    throw runtime_error(
        fmt::format("the catalogue has {} as {} in blocks of {}, the layout{} wants it as {} in "
                    "blocks of {}",
                    tensor.name, dtype_name(tensor.dtype), block, rules.text(), dtype_name(wanted),
                    rules.block),
        "make the layout with the held catalogue of the same spec; this is a bug: please report it "
        "with the command line");
  }
}

}  // namespace awex
