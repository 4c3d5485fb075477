// FSDP2 under tensor parallelism: torch/distributed/fsdp/_fully_shard/_fsdp_param.py, torch.chunk.
#include <algorithm>

#include "support/oracle_writer.hpp"

namespace awex::test {
namespace {

bool contains(const std::string& name, const std::string& part) {
  return name.find(part) != std::string::npos;
}

/// As torch.chunk: every chunk but the last ones has ceil(size / count).
std::pair<uint64_t, uint64_t> chunk(uint64_t size, Slice slice) {
  const uint64_t full = padded_to(size, slice.count) / slice.count;
  const uint64_t first = std::min(slice.index * full, size);
  return {first, std::min(full, size - first)};
}

IdMatrix row_chunk(const IdMatrix& m, Slice slice) {
  const auto [first, count] = chunk(m.rows, slice);
  return rows_of(m, first, count);
}

IdMatrix col_chunk(const IdMatrix& m, Slice slice) {
  const auto [first, count] = chunk(m.cols, slice);
  return cols_of(m, first, count);
}

/// Column-parallel layers and the vocabulary are split in rows, row-parallel ones in columns.
IdMatrix tensor_part(const IdMatrix& m, const std::string& name, Slice tp) {
  for (const char* part : {"o_proj.weight", "down_proj.", ".w2."}) {
    if (contains(name, part)) return col_chunk(m, tp);
  }
  for (const char* part : {"q_proj.", "k_proj.", "v_proj.", "gate_proj.", "up_proj.", "q_b_proj.",
                           "kv_b_proj.", "embed_tokens.", "lm_head.", ".w1.", ".w3."}) {
    if (contains(name, part)) return row_chunk(m, tp);
  }
  return m;
}

class Fsdp : public Writer {
 public:
  using Writer::Writer;
  RankContents contents(Slice tp, Slice shard) {
    must_divide(config().heads, tp.count, "attention heads");
    must_divide(config().kv_heads, tp.count, "KV heads");
    for (const TensorInfo& tensor : catalogue().tensors()) {
      IdMatrix held = row_chunk(tensor_part(canonical(tensor.name), tensor.name, tp), shard);
      // A layout has no parameters without elements.
      if (!held.ids.empty()) put(tensor.name, std::move(held));
    }
    return take();
  }
};

}  // namespace

RankContents fsdp_contents(const EngineCase& engine, const Catalogue& catalogue, uint64_t rank,
                           uint64_t ranks) {
  const uint64_t left = divide(ranks, engine.tp, "ranks over tp");
  const bool shards = engine.options.count("shard") > 0;
  const uint64_t shard =
      shards ? engine.number("shard") : divide(left, engine.number("replicate"), "replicate");
  const uint64_t replicate = divide(left, shard, "ranks over tp and shard");
  if (engine.number("replicate", replicate) != replicate) throw DoesNotDivide{"replicate"};
  const auto place = grid_place(rank, {engine.tp, shard, replicate});
  return Fsdp(catalogue).contents({engine.tp, place[0]}, {shard, place[1]});
}

}  // namespace awex::test
