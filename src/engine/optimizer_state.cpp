#include "engine/optimizer_state.hpp"

#include <fmt/format.h>

#include <array>

#include "base/checked.hpp"

namespace awex {
namespace {

constexpr std::array<const char*, 3> kArrays{"master", "exp_avg", "exp_avg_sq"};

}  // namespace

OptimizerState::OptimizerState(const RankLayout& layout) : starts_{0} {
  constexpr uint64_t kStep = kParameterAlignment / sizeof(float);
  for (const auto& parameter : layout.parameters) {
    starts_.push_back(starts_.back() + round_up(parameter.elements(), kStep));
  }
}

uint64_t OptimizerState::bytes() const { return starts_.back() * kArrays.size() * sizeof(float); }

uint64_t OptimizerState::initialised_bytes(const RankLayout& layout) {
  uint64_t elements = 0;
  for (const auto& shard : layout.shards) elements += shard.box.elements();
  return elements * kArrays.size() * sizeof(float);
}

std::vector<Parameter> OptimizerState::tensors(const RankLayout& layout) const {
  std::vector<Parameter> tensors;
  for (uint64_t array = 0; array < kArrays.size(); ++array) {
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      const auto& parameter = layout.parameters[p];
      tensors.push_back({.name = fmt::format("{} of {}", kArrays.at(array), parameter.name),
                         .dtype = DType::kF32,
                         .rows = parameter.rows,
                         .cols = parameter.cols,
                         .offset_bytes = (array * starts_.back() + starts_[p]) * sizeof(float)});
    }
  }
  return tensors;
}

}  // namespace awex
