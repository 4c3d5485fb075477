#include "layout/megatron_options.hpp"

#include "base/checked.hpp"
#include "layout/builder.hpp"

namespace awex {
namespace {

/// Checks what tensor parallel ranks must divide in one layer.
class LayerCheck {
 public:
  LayerCheck(const MegatronOptions& options, const Catalogue& catalogue)
      : options_(options), catalogue_(catalogue) {}

  void check(const LayerTensors& layer) const {
    if (layer.o_bias) {
      throw request_error(fmt::format("{} has a bias on o_proj (attention_out_bias), which "
                                      "Megatron has on all linear layers or on none",
                                      catalogue_.model_name()),
                          "train this model with fsdp");
    }
    if (layer.qkv) {
      check_divides("rows of the fused QKV",
                    rows(layer.qkv->q) + rows(layer.qkv->k) + rows(layer.qkv->v), "tp",
                    options_.tp);
    }
    if (layer.latent && options_.local_spec) check_down_projections(*layer.latent);
    if (layer.mlp) check_divides("intermediate_size", rows(layer.mlp->gate), "tp", options_.tp);
    if (layer.moe) check_moe(*layer.moe);
  }

 private:
  [[nodiscard]] uint64_t rows(uint32_t tensor) const { return catalogue_.tensors()[tensor].rows; }

  void check_down_projections(const LatentTensors& latent) const {
    if (latent.q_down) check_divides("q_lora_rank", rows(*latent.q_down), "tp", options_.tp);
    check_divides("kv_lora_rank + qk_rope_head_dim", rows(latent.kv_down), "tp", options_.tp);
  }

  void check_moe(const MoeTensors& moe) const {
    check_divides("experts", moe.experts, "ep", options_.ep);
    check_divides("moe_intermediate_size", rows(moe.first_expert.gate), "etp", options_.etp);
    if (moe.shared) {
      check_divides("rows of the shared experts", rows(moe.shared->gate), "tp", options_.tp);
    }
  }

  const MegatronOptions& options_;
  const Catalogue& catalogue_;
};

/// Appends ",key=value" where the value is not the default.
template <class Value>
void append_option(std::string& text, const char* key, const Value& value, const Value& otherwise) {
  if (value != otherwise) text += fmt::format(",{}={}", key, value);
}

std::string describe_pipeline(const MegatronPipelineOptions& options) {
  std::string text;
  append_option(text, "pp", options.pp, 1U);
  append_option(text, "first", options.first.value_or(0), 0U);
  append_option(text, "last", options.last.value_or(0), 0U);
  if (options.account_for_embedding) text += ",account_for_embedding=on";
  if (options.account_for_loss) text += ",account_for_loss=on";
  if (options.layout) text += ",layout=" + *options.layout;
  append_option(text, "vpp", options.vpp, 1U);
  return text;
}

}  // namespace

MegatronOptions MegatronOptions::read(const EngineSpec& spec) {
  spec.allow_only({"tp", "pp", "first", "last", "account_for_embedding", "account_for_loss",
                   "layout", "vpp", "cp", "ep", "etp", "experts", "spec", "pad_vocab",
                   "pad_with_tp"});
  MegatronOptions options{
      .pipeline = MegatronPipelineOptions::read(spec),
      .tp = spec.count("tp", 1),
      .cp = spec.count("cp", 1),
      .ep = spec.count("ep", 1),
      .sequential_experts = spec.choice("experts", {"grouped", "sequential"}) == "sequential",
      .local_spec = spec.choice("spec", {"te", "local"}) == "local",
      .pad_vocab = spec.count("pad_vocab", 128),
      .pad_with_tp = spec.flag("pad_with_tp", true)};
  options.etp = spec.count("etp", options.tp);
  return options;
}

void MegatronOptions::check(const Catalogue& catalogue, const std::vector<LayerTensors>& layers,
                            uint32_t ranks) const {
  const ModelConfig& config = catalogue.config();
  check_ranks_divide("trainer ranks", ranks, "pp", pipeline.pp);
  const uint64_t stage_ranks = ranks / pipeline.pp;
  check_ranks_divide("trainer ranks of a pipeline stage", stage_ranks, "tp", tp);
  check_ranks_divide("trainer ranks of a pipeline stage and tp rank", stage_ranks / tp, "cp", cp);
  check_divides("num_attention_heads", config.heads, "tp", tp);
  check_divides("padded vocabulary", padded_vocab(config.vocab), "tp", tp);
  if (config.experts > 0) {
    check_ranks_divide("trainer ranks of a pipeline stage", stage_ranks, "etp", etp);
    check_ranks_divide("trainer ranks of a pipeline stage and etp rank", stage_ranks / etp, "ep",
                       ep);
  } else if (ep > 1) {
    throw request_error(fmt::format("ep={}: model {} has no experts", ep, catalogue.model_name()),
                        "leave ep out");
  }
  const LayerCheck layer_check(*this, catalogue);
  for (const auto& layer : layers) layer_check.check(layer);
}

std::string MegatronOptions::describe() const {
  std::string text = fmt::format("megatron:tp={}", tp) + describe_pipeline(pipeline);
  append_option(text, "cp", cp, 1U);
  append_option(text, "ep", ep, 1U);
  append_option(text, "etp", etp, tp);
  if (sequential_experts) text += ",experts=sequential";
  if (local_spec) text += ",spec=local";
  append_option(text, "pad_vocab", pad_vocab, 128U);
  if (!pad_with_tp) text += ",pad_with_tp=off";
  return text;
}

uint64_t MegatronOptions::padded_vocab(uint64_t vocab) const {
  return round_up(vocab, uint64_t{pad_vocab} * (pad_with_tp ? tp : 1));
}

}  // namespace awex
