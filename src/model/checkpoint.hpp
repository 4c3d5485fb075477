#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "model/weights.hpp"

namespace awex {

/// Opens a Hugging Face checkpoint: config.json with model.safetensors, or with
/// model.safetensors.index.json and the shards it names. Every tensor of the config must be there
/// once, in the shard that the index names, with the catalogue's shape; experts may be stacked, as
/// transformers 5 saves them. Weights in other float dtypes than the config's (which are the files'
/// where it names none) and fp8 weights with a scale for each block are converted when they are
/// read; remarks() counts them. Other tensors are refused, except those that transformers ignores
/// too (lm_head.weight of tied embeddings, rotary buffers, MTP layers) and, with `keep_layers`,
/// those of later layers; of these, files and index may name what the other does not have. A stored
/// head that differs from tied embeddings is a request error of read(). Throws a request error that
/// names tensor and file.
[[nodiscard]] std::unique_ptr<WeightSource> open_checkpoint(const std::filesystem::path& directory,
                                                            std::optional<uint64_t> keep_layers);

/// The catalogue that open_checkpoint would have, from config.json alone. Only where that names no
/// dtype are the weights asked, or is bfloat16 assumed, with a remark, if there are none.
[[nodiscard]] Catalogue checkpoint_catalogue(const std::filesystem::path& directory,
                                             std::optional<uint64_t> keep_layers,
                                             std::vector<std::string>& remarks);

inline constexpr uint64_t kDefaultShardBytes = 5'000'000'000;

/// Writes `source` as a checkpoint that open_checkpoint and transformers read: config.json and
/// model.safetensors, or shards of at most `max_shard_bytes` of tensor data (one tensor at least)
/// with an index. Holds a few megabytes a thread, never the model. Everything is written to
/// "<directory>.partial", config.json last, and renamed when complete, so what an interruption
/// leaves does not open as a checkpoint. Throws a request error when `directory` exists and is not
/// empty, another run writes the partial directory (what a killed run left is replaced), or the
/// disk has too little space; a run-time error when writing fails, after the partial directory is
/// removed. `poll` is called from all threads every few megabytes; what it throws ends the writing
/// likewise.
void write_checkpoint(
    const WeightSource& source, const std::filesystem::path& directory, uint64_t max_shard_bytes,
    ThreadPool& pool, const std::function<void()>& poll = [] {});

}  // namespace awex
