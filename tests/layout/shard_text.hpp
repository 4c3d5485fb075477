#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/layout.hpp"
#include "model/catalogue.hpp"

namespace awex::test {

/// A parameter's shape and shards as a line that a person can write down: "4x8: q_proj.weight
/// [0,2)x[0,8)#0 ...", a tensor by the end of its name, a box, a replica number.
inline std::string parameter_text(const Catalogue& catalogue, const RankLayout& layout,
                                  const std::string& name) {
  const auto found = std::find_if(layout.parameters.begin(), layout.parameters.end(),
                                  [&](const Parameter& p) { return p.name == name; });
  if (found == layout.parameters.end()) return "none";
  std::string text = fmt::format("{}x{}:", found->rows, found->cols);
  for (const Shard& shard : layout.shards) {
    if (shard.parameter != found - layout.parameters.begin()) continue;
    std::string tensor = catalogue.tensors()[shard.tensor].name;
    if (tensor.starts_with("model.layers.")) {
      tensor = tensor.substr(tensor.find('.', std::string("model.layers.").size()) + 1);
    }
    text += fmt::format(" {}[{},{})x[{},{})#{}", tensor, shard.box.rows.begin, shard.box.rows.end,
                        shard.box.cols.begin, shard.box.cols.end, shard.replica);
  }
  return text;
}

/// The first (tensor, replica) whose shards do not hold every element of the tensor exactly once
/// over all ranks, or the first tensor whose replicas are not numbered from 0 on; empty if none is.
inline std::string wrong_replica(const Catalogue& catalogue, const Layout& layout) {
  std::map<std::pair<uint32_t, uint32_t>, std::vector<uint32_t>> held;
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
    for (const Shard& shard : layout.rank_layout(rank).shards) {
      const TensorInfo& tensor = catalogue.tensors()[shard.tensor];
      auto& times = held[{shard.tensor, shard.replica}];
      times.resize(tensor.elements(), 0);
      for (uint64_t row = shard.box.rows.begin; row < shard.box.rows.end; ++row) {
        for (uint64_t col = shard.box.cols.begin; col < shard.box.cols.end; ++col) {
          ++times.at(row * tensor.cols + col);
        }
      }
    }
  }
  std::vector<uint32_t> replicas(catalogue.tensors().size(), 0);
  for (const auto& [key, times] : held) {
    const std::string name = fmt::format("{}#{}", catalogue.tensors()[key.first].name, key.second);
    if (key.second != replicas[key.first]++) return name + " follows a gap in the numbers";
    if (std::any_of(times.begin(), times.end(), [](uint32_t n) { return n != 1; })) return name;
  }
  for (uint32_t tensor = 0; tensor < replicas.size(); ++tensor) {
    if (replicas[tensor] == 0) return catalogue.tensors()[tensor].name + " is nowhere";
  }
  return {};
}

/// Whether a rank holds the same as the first one like it, but for the numbers of replicas.
inline bool is_like_its_first(const Layout& layout, uint32_t rank) {
  const uint32_t first = layout.first_like(rank);
  const RankLayout one = layout.rank_layout(rank);
  const RankLayout two = layout.rank_layout(first);
  const auto same = [](const Shard& a, const Shard& b) {
    return a.tensor == b.tensor && a.parameter == b.parameter && a.box == b.box &&
           a.offset_bytes == b.offset_bytes && a.row_stride == b.row_stride;
  };
  return first <= rank && one.bytes == two.bytes &&
         std::equal(one.shards.begin(), one.shards.end(), two.shards.begin(), two.shards.end(),
                    same);
}

/// The first and the last layer that a rank holds, "2-3".
inline std::string layers_text(const Catalogue& catalogue, const RankLayout& layout) {
  std::vector<uint64_t> layers;
  const std::string prefix = "model.layers.";
  for (const Shard& shard : layout.shards) {
    const std::string& name = catalogue.tensors()[shard.tensor].name;
    if (name.starts_with(prefix)) layers.push_back(std::stoull(name.substr(prefix.size())));
  }
  return fmt::format("{}-{}", *std::min_element(layers.begin(), layers.end()),
                     *std::max_element(layers.begin(), layers.end()));
}

/// Over 120 ranks, which several instances of the engine fill: the shards of each replica hold
/// every element once, and ranks that the layout calls alike are.
inline void check_replicas(const std::string& spec, const Catalogue& catalogue) {
  constexpr uint32_t kRanks = 120;
  const auto layout = make_inference_layout(spec, catalogue, kRanks);
  CHECK(layout->describe() == spec);
  CHECK(wrong_replica(catalogue, *layout) == "");
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    CAPTURE(rank);
    CHECK(is_like_its_first(*layout, rank));
  }
  CHECK(layout->first_like(kRanks - 1) < kRanks - 1);
}

/// An inference layout of this model must be refused as a wrong request, with just this message.
inline void check_refused(const ModelConfig& config, const std::string& spec, uint32_t ranks,
                          const std::string& message) {
  CAPTURE(spec);
  const Catalogue catalogue = make_catalogue("small", config);
  try {
    const auto engine = std::string(spec).substr(0, std::string(spec).find(':'));
    (void)make_inference_layout(spec, held_catalogue(engine, catalogue), ranks);
    FAIL_CHECK("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    CHECK(error.what() == message);
  }
}

}  // namespace awex::test
