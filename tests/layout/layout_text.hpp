#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "layout/layout.hpp"
#include "model/catalogue.hpp"

/// Layouts as short text, to compare with what was worked out by hand.
namespace awex::test {

/// The names of all parameters, in order.
[[nodiscard]] inline std::vector<std::string> names_of(const RankLayout& layout) {
  std::vector<std::string> names;
  for (const Parameter& parameter : layout.parameters) names.push_back(parameter.name);
  return names;
}

[[nodiscard]] inline bool has_parameter(const RankLayout& layout, const std::string& name) {
  const auto names = names_of(layout);
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// A parameter's shape, then its shards: "6x4: 0.mlp.gate_proj[0:3,0:4]#0 …", that is rows and
/// columns of a canonical tensor (without "model.layers." and ".weight") and the replica.
[[nodiscard]] inline std::string content_of(const RankLayout& layout, const Catalogue& catalogue,
                                            const std::string& name) {
  for (uint32_t p = 0; p < layout.parameters.size(); ++p) {
    const Parameter& parameter = layout.parameters[p];
    if (parameter.name != name) continue;
    std::string text = fmt::format("{}x{}:", parameter.rows, parameter.cols);
    for (const Shard& shard : layout.shards) {
      if (shard.parameter != p) continue;
      std::string tensor = catalogue.tensors()[shard.tensor].name;
      if (tensor.starts_with("model.layers.")) tensor = tensor.substr(13);
      if (tensor.ends_with(".weight")) tensor = tensor.substr(0, tensor.size() - 7);
      text += fmt::format(" {}[{}:{},{}:{}]#{}", tensor, shard.box.rows.begin, shard.box.rows.end,
                          shard.box.cols.begin, shard.box.cols.end, shard.replica);
    }
    return text;
  }
  return "no " + name;
}

/// Over all ranks, the shards of one tensor with one replica number are disjoint and cover it;
/// replica numbers have no holes. Returns what is wrong first, or nothing.
[[nodiscard]] inline std::string wrong_cover(const Layout& layout, const Catalogue& catalogue) {
  std::map<std::pair<uint32_t, uint32_t>, std::vector<Box>> held;
  for (uint32_t rank = 0; rank < layout.ranks(); ++rank) {
    for (const Shard& shard : layout.rank_layout(rank).shards) {
      held[{shard.tensor, shard.replica}].push_back(shard.box);
    }
  }
  for (uint32_t tensor = 0; tensor < catalogue.tensors().size(); ++tensor) {
    if (!held.contains({tensor, 0})) return "no rank holds " + catalogue.tensors()[tensor].name;
  }
  for (const auto& [key, boxes] : held) {
    const auto [tensor, replica] = key;
    const TensorInfo& info = catalogue.tensors()[tensor];
    const auto where = fmt::format("replica {} of {}", replica, info.name);
    if (replica > 0 && !held.contains({tensor, replica - 1})) return where + ": one before lacks";
    uint64_t elements = 0;
    for (size_t i = 0; i < boxes.size(); ++i) {
      elements += boxes[i].elements();
      for (size_t j = 0; j < i; ++j) {
        if (!intersect(boxes[i], boxes[j]).empty()) return where + ": held twice";
      }
    }
    if (elements != info.elements()) return where + ": not whole";
  }
  return {};
}

/// The call must throw a request error whose message or hint has every one of `words`.
inline void check_request_refused(const std::function<void()>& call,
                                  const std::vector<std::string>& words) {
  try {
    call();
    FAIL_CHECK("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    const std::string text = std::string(error.what()) + "\n" + error.hint();
    CAPTURE(text);
    for (const std::string& word : words) {
      CAPTURE(word);
      CHECK(text.find(word) != std::string::npos);
    }
  }
}

}  // namespace awex::test
