// Dtypes and scales of quantised checkpoints (config.json's weight_block_size, "*_scale_inv"), and
// what SGLang's and vLLM's layers/quantization/fp8.py make of them.
#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "support/oracle_writer.hpp"

namespace awex::test {
namespace {

DType named_dtype(const std::string& name) {
  if (name == "bf16") return DType::kBf16;
  if (name == "fp16") return DType::kF16;
  if (name == "fp32") return DType::kF32;
  if (name == "fp8") return DType::kF8E4M3;
  throw std::logic_error("oracle: no dtype " + name);
}

bool is_quantised(const std::string& tensor) {
  for (const char* name :
       {".q_proj.weight", ".k_proj.weight", ".v_proj.weight", ".o_proj.weight", ".q_a_proj.weight",
        ".q_b_proj.weight", ".kv_a_proj_with_mqa.weight", ".kv_b_proj.weight", ".gate_proj.weight",
        ".up_proj.weight", ".down_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight"}) {
    if (tensor.ends_with(name)) return true;
  }
  return false;
}

bool is_scale(const std::string& tensor) { return tensor.ends_with("_scale_inv"); }

}  // namespace

uint64_t scale_block(const EngineCase& engine) {
  return engine.text("dtype", "") == "fp8" ? engine.number("block", 128) : 0;
}

DType expected_dtype(const ModelConfig& config, const std::string& tensor,
                     const EngineCase& engine) {
  if (is_scale(tensor) || tensor.ends_with("e_score_correction_bias")) return DType::kF32;
  const bool router = tensor.ends_with(fmt::format(".{}.gate.weight", moe_module(config)));
  if (router && engine.options.count("router_dtype") > 0) {
    return named_dtype(engine.options.at("router_dtype"));
  }
  const bool glm = config.family == "glm4_moe" || config.family == "glm4_moe_lite";
  const bool glm_class = glm && (engine.engine == "sglang" || engine.engine == "vllm");
  if (glm_class && router) return DType::kF32;
  if (engine.options.count("dtype") == 0) return config.dtype;
  if (scale_block(engine) > 0) return is_quantised(tensor) ? DType::kF8E4M3 : config.dtype;
  return named_dtype(engine.options.at("dtype"));
}

Scaler::Scaler(const Catalogue& catalogue, uint64_t block) : catalogue_(catalogue), block_(block) {
  uint32_t next = 0;
  for (const TensorInfo& tensor : catalogue.tensors()) next += is_scale(tensor.name) ? 0 : 1;
  for (const TensorInfo& tensor : catalogue.tensors()) {
    scales_.push_back(block > 0 && is_quantised(tensor.name) ? next++ : 0);
  }
}

bool Scaler::scales(const IdMatrix& m) const {
  return block_ > 0 && !m.ids.empty() && m.ids.front() != kPadding &&
         scales_.at(tensor_of(m.ids.front())) > 0;
}

Identity Scaler::scale_of(Identity element) const {
  const TensorInfo& tensor = catalogue_.tensors().at(tensor_of(element));
  const uint64_t row = index_of(element) / tensor.cols;
  const uint64_t col = index_of(element) % tensor.cols;
  return identity_of(scales_.at(tensor_of(element)),
                     row / block_ * (padded_to(tensor.cols, block_) / block_) + col / block_);
}

void Scaler::check_element(const IdMatrix& m, uint64_t row, uint64_t col, Identity scale) const {
  const Identity id = m.ids.at(row * m.cols + col);
  const uint64_t cols = catalogue_.tensors().at(tensor_of(id)).cols;
  const bool same_place =
      index_of(id) / cols % block_ == row % block_ && index_of(id) % cols % block_ == col % block_;
  if (scale_of(id) != scale || !same_place) throw DoesNotDivide{"a block of scales"};
}

Identity Scaler::scale_at(const IdMatrix& m, uint64_t row, uint64_t col) const {
  const Identity first = m.ids.at(row * m.cols + col);
  const Identity scale = scale_of(first);
  uint64_t held = 0;
  for (uint64_t r = row; r < std::min(row + block_, m.rows); ++r) {
    for (uint64_t c = col; c < std::min(col + block_, m.cols); ++c, ++held) {
      check_element(m, r, c, scale);
    }
  }
  const TensorInfo& tensor = catalogue_.tensors().at(tensor_of(first));
  uint64_t whole = 0;
  for (uint64_t i = 0; i < tensor.rows * tensor.cols; ++i) {
    whole += scale_of(identity_of(tensor_of(first), i)) == scale ? 1 : 0;
  }
  if (held != whole) throw DoesNotDivide{"a block of scales"};
  return scale;
}

IdMatrix Scaler::scales_of(const IdMatrix& m) const {
  IdMatrix out;
  for (uint64_t row = 0; row < m.rows; row += block_, ++out.rows) {
    for (uint64_t col = 0; col < m.cols; col += block_) out.ids.push_back(scale_at(m, row, col));
  }
  out.cols = out.ids.size() / out.rows;
  return out;
}

std::map<uint64_t, Identity> expected_scales(const RankLayout& layout, const Catalogue& catalogue,
                                             uint64_t block, bool owned) {
  std::map<uint64_t, Identity> scales;
  if (block == 0) return scales;
  const Scaler scaler(catalogue, block);
  for (const Shard& shard : layout.shards) {
    const TensorInfo& tensor = catalogue.tensors().at(shard.tensor);
    if (is_quantised(tensor.name) != shard.scales.has_value()) {
      throw std::logic_error("a shard of " + tensor.name + " has scales, or lacks them");
    }
    if (!shard.scales) continue;
    std::map<uint64_t, Identity> own;
    for (uint64_t r = shard.box.rows.begin; r < shard.box.rows.end; ++r) {
      for (uint64_t c = shard.box.cols.begin; c < shard.box.cols.end; ++c) {
        if (owned && (r % block != 0 || c % block != 0)) continue;
        const uint64_t down = r / block - shard.box.rows.begin / block;
        const uint64_t right = c / block - shard.box.cols.begin / block;
        const uint64_t at =
            shard.scales->offset_bytes + sizeof(float) * (down * shard.scales->row_stride + right);
        const Identity scale = scaler.scale_of(identity_of(shard.tensor, r * tensor.cols + c));
        if (own.emplace(at, scale).first->second != scale) {
          throw std::logic_error("two scales of " + tensor.name + " share a place");
        }
      }
    }
    for (const auto& [at, scale] : own) {
      if (!scales.emplace(at, scale).second) {
        throw std::logic_error("two shards share a place for scales of " + tensor.name);
      }
    }
  }
  return scales;
}

}  // namespace awex::test
