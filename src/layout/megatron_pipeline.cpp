#include "layout/megatron_pipeline.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string>
#include <vector>

#include "base/checked.hpp"
#include "layout/builder.hpp"

namespace awex {
namespace {

constexpr const char* kLayoutHint =
    "write E (embedding), t (a layer), m (an MTP layer) and L (output layer), with | between "
    "stages; (tt|)*3 and t*3 repeat";

[[noreturn]] void refuse_layout(const std::string& layout, const std::string& why) {
  throw request_error(fmt::format("layout={} {}", layout, why), kLayoutHint);
}

/// Writes a layout's repetitions out: "E(t|)*2t*3L" is "Et|t|tttL". Commas are ornaments.
class LayoutUnroller {
 public:
  explicit LayoutUnroller(const std::string& layout) : layout_(layout) {}

  [[nodiscard]] std::string unroll(std::string_view text) const {
    std::string out;
    while (!text.empty()) {
      if (text.front() == ',') {
        text.remove_prefix(1);
        continue;
      }
      const std::string unit = take_unit(text);
      const uint64_t times = take_repetition(text);
      constexpr uint64_t kMost = 1U << 20;
      if (out.size() + unit.size() * times > kMost) {
        refuse_layout(layout_, fmt::format("has more than {} places", kMost));
      }
      for (uint64_t i = 0; i < times; ++i) out += unit;
    }
    return out;
  }

 private:
  /// A letter, or what stands in parentheses.
  [[nodiscard]] std::string take_unit(std::string_view& text) const {
    if (text.front() != '(') {
      std::string letter(1, text.front());
      text.remove_prefix(1);
      return letter;
    }
    const auto close = text.find(')');
    if (close == std::string_view::npos) refuse_layout(layout_, "does not close a parenthesis");
    const auto inside = text.substr(1, close - 1);
    text.remove_prefix(close + 1);
    return unroll(inside);
  }

  /// "*3" at the beginning of the text, or once.
  [[nodiscard]] uint64_t take_repetition(std::string_view& text) const {
    if (!text.starts_with('*')) return 1;
    uint32_t times = 0;
    const char* const begin = text.data() + 1;
    const auto [end, error] = std::from_chars(begin, text.data() + text.size(), times);
    if (error != std::errc{}) refuse_layout(layout_, "has a * without a number behind it");
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    return times;
  }

  const std::string& layout_;
};

void check_letters(const std::string& layout, const std::string& places, uint64_t layers) {
  const auto count = [&](char letter) {
    return static_cast<uint64_t>(std::count(places.begin(), places.end(), letter));
  };
  const auto wrong = places.find_first_not_of("EtmL|");
  if (wrong != std::string::npos) {
    refuse_layout(layout, fmt::format("has the letter '{}'", places[wrong]));
  }
  if (count('E') != 1 || !places.starts_with('E'))
    refuse_layout(layout, "must begin with its one E");
  if (count('L') != 1 || !places.ends_with('L')) refuse_layout(layout, "must end with its one L");
  if (count('t') != layers) {
    refuse_layout(layout, fmt::format("has {} layers, the model has {}", count('t'), layers));
  }
  const auto mtp = places.find('m');
  if (mtp != std::string::npos && places.find('t', mtp) != std::string::npos) {
    refuse_layout(layout, "has a t behind an m");
  }
}

/// The layers of each chunk of a layout whose letters are right.
std::vector<uint64_t> layers_between_bars(const std::string& places) {
  std::vector<uint64_t> layers_of(1, 0);
  for (const char place : places) {
    if (place == '|') layers_of.push_back(0);
    if (place == 't') ++layers_of.back();
  }
  return layers_of;
}

/// core/transformer/transformer_block.py: the last layer's chunk has the final norm if there are
/// MTP layers, which take their input from before it.
void move_final_norm(Pipeline& pipeline, uint64_t layers) {
  pipeline.back().back().final_norm = false;
  for (auto& stage : pipeline) {
    for (auto& chunk : stage) {
      if (!chunk.layers.empty() && chunk.layers.end == layers) chunk.final_norm = true;
    }
  }
}

Pipeline pipeline_from_layout(const MegatronPipelineOptions& options, uint64_t layers) {
  const std::string& layout = *options.layout;
  const std::string places = LayoutUnroller(layout).unroll(layout);
  check_letters(layout, places, layers);
  const auto layers_of = layers_between_bars(places);
  if (layers_of.size() != uint64_t{options.pp} * options.vpp) {
    refuse_layout(layout, fmt::format("has {} stages, which is not pp={} times vpp={}",
                                      layers_of.size(), options.pp, options.vpp));
  }
  Pipeline pipeline = make_pipeline(layers_of, options.pp);
  if (places.find('m') != std::string::npos) move_final_norm(pipeline, layers);
  return pipeline;
}

/// Layers of the first, of each middle and of the last stage.
struct Ends {
  uint64_t first = 0;
  uint64_t middle = 0;
  uint64_t last = 0;
};

/// The most even such numbers, all multiples of vpp, none larger than `middle`; nothing if there
/// are too few layers.
std::optional<Ends> even_ends(const MegatronPipelineOptions& options, uint64_t layers) {
  const uint64_t step = options.vpp;
  if (options.pp < 2 || layers % step != 0) return std::nullopt;
  const uint64_t units = layers / step;
  const uint64_t between = options.pp - 2;
  for (uint64_t middle = ceil_div(units, options.pp); between * middle + 2 <= units; ++middle) {
    const uint64_t rest = units - between * middle;
    if (rest > 2 * middle) continue;
    return Ends{(rest - rest / 2) * step, middle * step, rest / 2 * step};
  }
  return std::nullopt;
}

/// Values with which the layers can be spread.
std::string pipeline_hint(const MegatronPipelineOptions& options, uint64_t layers) {
  std::vector<std::string> ways;
  const auto ends = even_ends(options, layers);
  if (ends) ways.push_back(fmt::format("first={},last={}", ends->first, ends->last));
  if ((layers + 1) % options.pp == 0) ways.emplace_back("account_for_loss=on");
  if ((layers + 2) % options.pp == 0) {
    ways.emplace_back("account_for_embedding=on,account_for_loss=on");
  }
  if (ends && options.vpp == 1) {
    const auto middle =
        options.pp > 2 ? fmt::format("(t*{}|)*{}", ends->middle, options.pp - 2) : "";
    ways.push_back(fmt::format("layout=Et*{}|{}t*{}L", ends->first, middle, ends->last));
  }
  std::vector<uint64_t> divisors;
  for (uint64_t pp = 2; pp <= std::min<uint64_t>(layers, 64); ++pp) {
    if (layers % (pp * options.vpp) == 0) divisors.push_back(pp);
  }
  const auto even =
      divisors.empty() ? "" : fmt::format("even stages: pp={}", fmt::join(divisors, ", pp="));
  if (ways.empty()) {
    return even.empty()
               ? "choose a smaller pp; first, last, account_for_embedding, account_for_loss "
                 "and layout make stages uneven"
               : even;
  }
  return fmt::format("uneven stages: {}{}{}", fmt::join(ways, ", or "), even.empty() ? "" : "; ",
                     even);
}

/// Layers of each stage when the first or last is given. In the middle they divide evenly.
std::vector<uint64_t> uneven_stages(const MegatronPipelineOptions& options, uint64_t layers) {
  const uint64_t ends = uint64_t{options.first.value_or(0)} + options.last.value_or(0);
  const uint32_t middle = options.pp - (options.first ? 1 : 0) - (options.last ? 1 : 0);
  const auto given =
      fmt::format("{}{}{}", options.first ? fmt::format("first={}", *options.first) : "",
                  options.first && options.last ? "," : "",
                  options.last ? fmt::format("last={}", *options.last) : "");
  if (ends > layers || (middle == 0 && ends != layers)) {
    throw request_error(fmt::format("{} gives {} layers to {} of pp={} stages, the model has {}",
                                    given, ends, options.pp - middle, options.pp, layers),
                        pipeline_hint(options, layers));
  }
  if (middle > 0 && (layers - ends) % middle != 0) {
    throw request_error(fmt::format("{} leaves {} of {} layers, which do not divide by the {} "
                                    "other stages of pp={}",
                                    given, layers - ends, layers, middle, options.pp),
                        pipeline_hint(options, layers));
  }
  std::vector<uint64_t> layers_of(options.pp, middle > 0 ? (layers - ends) / middle : 0);
  if (options.first) layers_of.front() = *options.first;
  if (options.last) layers_of.back() = *options.last;
  return layers_of;
}

std::vector<uint64_t> even_stages(const MegatronPipelineOptions& options, uint64_t layers) {
  const uint64_t places =
      layers + (options.account_for_embedding ? 1 : 0) + (options.account_for_loss ? 1 : 0);
  if (places % options.pp != 0) {
    throw request_error(
        fmt::format("{} = {} does not divide by pp={}",
                    places == layers ? "num_hidden_layers"
                                     : "num_hidden_layers with the places of embedding and loss",
                    places, options.pp),
        pipeline_hint(options, layers));
  }
  return std::vector<uint64_t>(options.pp, places / options.pp);
}

/// Embedding or output layer stand for a layer of their chunk.
void take_place(uint64_t& layers, const char* option) {
  if (layers == 0) {
    throw request_error(fmt::format("{}=on needs a place in a stage that has none left", option),
                        "choose a smaller pp or vpp");
  }
  --layers;
}

}  // namespace

MegatronPipelineOptions MegatronPipelineOptions::read(const EngineSpec& spec) {
  MegatronPipelineOptions options{
      .pp = spec.count("pp", 1),
      .vpp = spec.count("vpp", 1),
      .first = spec.count("first"),
      .last = spec.count("last"),
      .account_for_embedding = spec.flag("account_for_embedding", false),
      .account_for_loss = spec.flag("account_for_loss", false),
      .layout = spec.text_of("layout")};
  const bool has_ends = options.first || options.last;
  const bool accounts = options.account_for_embedding || options.account_for_loss;
  if ((has_ends && accounts) || (options.layout && (has_ends || accounts))) {
    throw request_error(fmt::format("\"{}\" says twice how many layers a stage has", spec.text()),
                        "give first and last, or account_for_embedding and account_for_loss, or "
                        "layout");
  }
  if (options.layout && !spec.text_of("vpp")) {
    const auto places = LayoutUnroller(*options.layout).unroll(*options.layout);
    const uint64_t chunks = layers_between_bars(places).size();
    check_divides(fmt::format("stages of layout={}", *options.layout), chunks, "pp", options.pp);
    options.vpp = static_cast<uint32_t>(chunks / options.pp);
  }
  if (options.pp == 1 && (has_ends || options.vpp > 1)) {
    throw request_error(fmt::format("\"{}\": first, last and vpp need more than one stage, and "
                                    "pp=1",
                                    spec.text()),
                        "give pp, or leave them out");
  }
  return options;
}

Pipeline megatron_pipeline(const MegatronPipelineOptions& options, uint64_t layers) {
  if (options.layout) return pipeline_from_layout(options, layers);
  const auto stages =
      options.first || options.last ? uneven_stages(options, layers) : even_stages(options, layers);
  std::vector<uint64_t> layers_of;
  for (uint32_t chunk = 0; chunk < options.vpp; ++chunk) {
    for (const uint64_t in_stage : stages) {
      check_divides("layers of a pipeline stage", in_stage, "vpp", options.vpp);
      layers_of.push_back(in_stage / options.vpp);
    }
  }
  if (options.account_for_embedding) take_place(layers_of.front(), "account_for_embedding");
  if (options.account_for_loss) take_place(layers_of.back(), "account_for_loss");
  return make_pipeline(layers_of, options.pp);
}

}  // namespace awex
