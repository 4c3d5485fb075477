#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "layout/builder.hpp"
#include "layout/layout.hpp"

namespace awex {

/// How many ranks hold one replica of a tensor together (1: each has a whole one), and what says
/// so.
struct Ways {
  uint32_t count = 1;
  Splitter by{"tp"};
};

/// An inference engine that fuses projections (qkv_proj, gate_up_proj, stacked experts), as vLLM
/// does and SGLang after it. Ranks of the role run tp fastest, then pipeline stages, then data
/// parallel ranks, then instances. A stage has tp * dp ranks; counted dp-major, each run of
/// `Ways::count` of them holds one replica of a tensor. So every count must divide tp * dp.
struct FusedEngine {
  std::string spec;           ///< Layout::describe().
  uint32_t tp = 1;            ///< Tensor parallel ranks.
  uint32_t dp = 1;            ///< Data parallel ranks inside one instance of the engine.
  std::vector<Range> stages;  ///< The layers of each pipeline stage, in order.
  Ways embedding;
  Ways head;            ///< Of lm_head, where it is not the embedding itself.
  Ways attention;       ///< Query heads; KV heads are repeated where there are fewer.
  Ways dense_mlp;       ///< MLPs of layers without experts.
  Ways shared_experts;  ///< Unless they are fused.
  Ways experts;         ///< One expert; tp * dp / count groups of ranks share out the experts.
  bool fuse_shared_experts = false;  ///< Every such group holds them as its last expert.
  const char* fused_qkv_a = "";      ///< MLA: how the engine names q_a and kv_a together.
  const char* tied_head = "";        ///< What the last of several stages calls its own replica of a
                                     ///< tied embedding; empty where it has none.
  const char* moe_module = "mlp.";   ///< How it names what has the experts of a layer,
  const char* experts_module = "experts.";        ///< in it what has w13_weight and w2_weight,
  const char* shared_module = "shared_experts.";  ///< and the shared experts.
  bool ends_everywhere = false;  ///< Every stage has embedding, last norm and head (or tied head).
  bool pads_vocabulary_by_parts = false;  ///< Further, where a multiple of 64 does not divide.
  bool own_head = false;             ///< A tied lm_head is a replica of its own on one stage, too.
  bool head_everywhere = false;      ///< Every stage has the lm_head, not the last alone.
  std::vector<std::string> notes{};  ///< Layout::notes().
};

/// The layers of each of `pp` stages, of which the ones in `longer` (stage indices) have one layer
/// more than the others. Throws a request error when there are fewer layers than stages.
[[nodiscard]] std::vector<Range> split_layers(uint64_t layers, uint32_t pp, Range longer);

/// Throws a request error unless `ranks` ranks are whole instances of tp * pp * dp ranks each.
void check_instances(uint32_t ranks, uint32_t tp, uint32_t pp, uint32_t dp);

/// The layout of such an engine over `ranks` ranks, which check_instances must have passed. Keeps a
/// reference to the catalogue. Throws a request error that names size, option and value when the
/// model does not divide.
[[nodiscard]] std::unique_ptr<Layout> make_fused_layout(const Catalogue& catalogue,
                                                        FusedEngine engine, uint32_t ranks);

}  // namespace awex
