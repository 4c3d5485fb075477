#include "layout/fsdp.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "layout/builder.hpp"

namespace awex {
namespace {

/// How tensor parallel ranks split a parameter: projections into heads and MLPs by rows, those out
/// of them by columns.
enum class TensorSplit : uint8_t { kNone, kRows, kCols };

TensorSplit split_of(TensorRole role) {
  switch (role) {
    case TensorRole::kEmbedding:
    case TensorRole::kHead:
    case TensorRole::kQ:
    case TensorRole::kK:
    case TensorRole::kV:
    case TensorRole::kQBias:
    case TensorRole::kKBias:
    case TensorRole::kVBias:
    case TensorRole::kQUp:
    case TensorRole::kKvUp:
    case TensorRole::kGate:
    case TensorRole::kUp:
    case TensorRole::kExpertGate:
    case TensorRole::kExpertUp:
    case TensorRole::kSharedGate:
    case TensorRole::kSharedUp:
      return TensorSplit::kRows;
    case TensorRole::kO:
    case TensorRole::kDown:
    case TensorRole::kExpertDown:
    case TensorRole::kSharedDown:
      return TensorSplit::kCols;
    case TensorRole::kNone:
    case TensorRole::kFinalNorm:
    case TensorRole::kInputNorm:
    case TensorRole::kPostAttentionNorm:
    case TensorRole::kQNorm:
    case TensorRole::kKNorm:
    case TensorRole::kQDown:
    case TensorRole::kQDownNorm:
    case TensorRole::kKvDown:
    case TensorRole::kKvDownNorm:
    case TensorRole::kOBias:
    case TensorRole::kRouter:
    case TensorRole::kRouterBias:
    case TensorRole::kSharedExpertGate:
    case TensorRole::kScales:
      return TensorSplit::kNone;
  }
  __builtin_unreachable();
}

/// torch.chunk: part `index` of `count` of the rows, short or empty at the end.
Range chunk_of(Range rows, Part part) {
  const uint64_t size = ceil_div(rows.size(), part.count);
  const uint64_t begin = std::min(rows.begin + part.index * size, rows.end);
  return {begin, std::min(begin + size, rows.end)};
}

struct FsdpOptions {
  uint32_t tp = 1;
  uint32_t shard = 1;
  uint32_t replicate = 1;

  static FsdpOptions read(const EngineSpec& spec, uint32_t ranks) {
    spec.allow_only({"shard", "replicate", "tp"});
    const uint32_t tp = spec.count("tp", 1);
    if (ranks == 0) return {tp, spec.count("shard", 1), spec.count("replicate", 1)};
    check_ranks_divide("trainer ranks", ranks, "tp", tp);
    const uint32_t left = ranks / tp;
    const uint32_t asked = spec.count("replicate", 1);
    check_ranks_divide("trainer ranks of a tp rank", left, "replicate", asked);
    const uint32_t shard = spec.count("shard", left / asked);
    check_ranks_divide("trainer ranks of a tp rank", left, "shard", shard);
    const uint32_t replicate = left / shard;
    if (spec.count("replicate", replicate) != replicate) {
      throw request_error(fmt::format("\"{}\" is a layout of {} ranks, there are {} trainer ranks",
                                      spec.text(), uint64_t{tp} * shard * asked, ranks),
                          fmt::format("replicate={} fits", replicate));
    }
    return {tp, shard, replicate};
  }
};

class FsdpLayout final : public Layout {
 public:
  FsdpLayout(const Catalogue& catalogue, FsdpOptions options, uint32_t ranks)
      : catalogue_(catalogue), options_(options), ranks_(ranks) {
    splits_.reserve(catalogue.tensors().size());
    for (const auto& tensor : catalogue.tensors()) splits_.push_back(split_of(tensor.role));
  }

  [[nodiscard]] std::string describe() const override {
    std::string text = fmt::format("fsdp:shard={}", options_.shard);
    if (options_.replicate > 1) text += fmt::format(",replicate={}", options_.replicate);
    if (options_.tp > 1) text += fmt::format(",tp={}", options_.tp);
    return text;
  }
  [[nodiscard]] uint32_t ranks() const override { return ranks_; }

  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override {
    const Part tp{options_.tp, rank % options_.tp};
    const Part shard{options_.shard, rank / options_.tp % options_.shard};
    RankLayoutBuilder builder(catalogue_, rank / (options_.tp * options_.shard));
    for (uint32_t tensor = 0; tensor < splits_.size(); ++tensor) {
      add_parameter(builder, tensor, tp, shard);
    }
    return builder.finish();
  }
  [[nodiscard]] uint32_t first_like(uint32_t rank) const override {
    return rank % (options_.tp * options_.shard);
  }

 private:
  void add_parameter(RankLayoutBuilder& builder, uint32_t tensor, Part tp, Part shard) const {
    const TensorInfo& info = catalogue_.tensors()[tensor];
    const TensorSplit split = splits_[tensor];
    const Part rows_part = split == TensorSplit::kRows ? tp : Part{};
    const Part cols_part = split == TensorSplit::kCols ? tp : Part{};
    const Box mine{chunk_of(chunk_of({0, info.rows}, rows_part), shard),
                   chunk_of({0, info.cols}, cols_part)};
    if (mine.empty()) return;
    builder.begin(info.name);
    builder.add(tensor, mine, split == TensorSplit::kNone ? tp : Part{});
  }

  const Catalogue& catalogue_;
  FsdpOptions options_;
  uint32_t ranks_;
  std::vector<TensorSplit> splits_;
};

void check_heads(const ModelConfig& config, uint32_t tp) {
  check_divides("num_attention_heads", config.heads, "tp", tp);
  if (!config.is_mla()) check_divides("num_key_value_heads", config.kv_heads, "tp", tp);
}

}  // namespace

std::unique_ptr<Layout> make_fsdp_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                         uint32_t ranks) {
  const auto options = FsdpOptions::read(spec, ranks);
  check_heads(catalogue.config(), options.tp);
  return std::make_unique<FsdpLayout>(catalogue, options, ranks);
}

}  // namespace awex
