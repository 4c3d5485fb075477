#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/config.hpp"

namespace awex {

/// The names of all presets: published shapes ("qwen3-0.6b", …) and small ones for tests
/// ("tiny-dense", …). The small ones divide by 2, 3 and 4 in heads, KV heads, hidden, latent and
/// intermediate sizes, experts and layers; their vocabulary is no multiple of 64, so engines have
/// to pad it. Their heads have 32 elements but for those of latent attention.
[[nodiscard]] std::vector<std::string> preset_names();

/// The presets that a user may have meant by `word` ("Qwen3", "preset:llama3"): the one whose name
/// it nearly is, or those whose names begin so; empty for none.
[[nodiscard]] std::vector<std::string> presets_like(std::string_view word);

/// A preset's config; all presets are bf16 and without MTP layers. Throws a request error with the
/// names that may be meant for an unknown one.
[[nodiscard]] ModelConfig preset_config(std::string_view name);

}  // namespace awex
