#include "cli/render_plan.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/error_json.hpp"
#include "base/json_values.hpp"
#include "base/units.hpp"
#include "cli/text_table.hpp"
#include "cli/wrapped_text.hpp"
#include "plan/plan_copies.hpp"

namespace awex {
namespace {

constexpr auto kLeft = TextColumn::Align::kLeft;
constexpr auto kRight = TextColumn::Align::kRight;

std::string gigabytes(uint64_t bytes) {
  return bytes == 0 ? "." : fmt::format("{:.2f}", static_cast<double>(bytes) / 1e9);
}

/// How much trainers send to other GPUs.
struct Sending {
  uint64_t most = 0;
  uint64_t total = 0;
  size_t senders = 0;

  [[nodiscard]] double mean() const {
    return static_cast<double>(total) / static_cast<double>(std::max<size_t>(1, senders));
  }
  [[nodiscard]] double most_over_mean() const {
    return total == 0 ? 1 : static_cast<double>(most) / mean();
  }
};

Sending sending_of(const Forecast& forecast) {
  Sending sending;
  for (const auto& device : forecast.devices) {
    sending.most = std::max(sending.most, device.sent());
    sending.total += device.sent();
    ++sending.senders;
  }
  return sending;
}

uint32_t nodes_of(const Forecast& forecast) { return forecast.placement.device_node.back() + 1; }

std::string links_line(const LinkSpeeds& links) {
  return fmt::format(
      "host {:.0f}, on the GPU {:.0f}, in the node {:.0f}, network {:.0f} GB/s a GPU",
      links.host / 1e9, links.device / 1e9, links.node / 1e9, links.network / 1e9);
}

std::string metadata(const Forecast& forecast, const Catalogue& catalogue,
                     const ForecastOptions& options, size_t width) {
  std::string out;
  const auto line = [&](const char* key, const std::string& text) {
    const std::string margin = "#            ";
    out += fmt::format("# {:<10} {}\n", key, fitted(text, width, margin));
  };
  const auto& plan = forecast.totals;
  const auto sending = sending_of(forecast);
  line("command", options.offload ? "plan" : "plan without offloading");
  line("model", fmt::format("{}: {} tensors, {} elements, {}", catalogue.model_name(),
                            catalogue.tensors().size(), catalogue.elements(),
                            format_bytes(catalogue.bytes())));
  const auto& held = *forecast.held;
  if (held.fingerprint() != catalogue.fingerprint()) {
    line("holds",
         fmt::format("{} tensors of inference, {} of them scales, {}", held.tensors().size(),
                     held.tensors().size() - catalogue.tensors().size(),
                     format_bytes(held.bytes())));
  }
  line("trainer", forecast.trainer->describe());
  line("inference", forecast.inference->describe());
  for (const auto& note : forecast.inference->notes()) line("note", note);
  const auto nodes = nodes_of(forecast);
  line("world", fmt::format("{} {}, {} {}", options.gpus, options.gpus == 1 ? "GPU" : "GPUs", nodes,
                            nodes == 1 ? "node" : "nodes"));
  line("plan", fmt::format("{} pieces for the whole cluster in {}", forecast.totals.total_pieces,
                           format_seconds(forecast.plan_seconds)));
  line("local", fmt::format("{} from the own GPU", format_bytes(plan.local_bytes)));
  line("remote",
       fmt::format("{} from other GPUs (at least {} are needed)", format_bytes(plan.remote_bytes),
                   format_bytes(plan.remote_bytes_lower_bound)));
  line(
      "senders",
      fmt::format("{} at most, {} on average, {:.2f} times the average", format_bytes(sending.most),
                  format_bytes(static_cast<uint64_t>(sending.mean())), sending.most_over_mean()));
  line("links", links_line(options.links));
  return out;
}

/// "GPU 3", "node 2", "nodes 8-15".
std::string group_name(const Forecast& forecast, uint32_t group) {
  if (forecast.group_gpus == 1) return fmt::format("GPU {}", group);
  const auto& node = forecast.placement.device_node;
  const size_t begin = size_t{group} * forecast.group_gpus;
  const uint32_t first = node[begin];
  const uint32_t last = node[std::min(node.size(), begin + forecast.group_gpus) - 1];
  return first == last ? fmt::format("node {}", first) : fmt::format("nodes {}-{}", first, last);
}

std::string traffic_table(const Forecast& forecast, size_t width) {
  std::vector<TextColumn> columns{{"from \\ to", "(GB)", kLeft}};
  for (uint32_t group = 0; group < forecast.groups; ++group) {
    columns.push_back({group_name(forecast, group), ""});
  }
  TextTable table(columns);
  for (uint32_t row = 0; row < forecast.groups; ++row) {
    std::vector<std::string> cells{group_name(forecast, row)};
    for (uint32_t col = 0; col < forecast.groups; ++col) {
      cells.push_back(gigabytes(forecast.matrix[size_t{row} * forecast.groups + col]));
    }
    table.add_row(std::move(cells));
  }
  return table.text(width);
}

std::string budget_cell(const std::optional<uint64_t>& budget) {
  return budget ? gigabytes(*budget) : "-";
}

std::string phases_table(const Forecast& forecast, const ForecastOptions& options, size_t width) {
  TextTable table({{"phase", "", kLeft},
                   {"role", "", kLeft},
                   {"tag", "", kLeft},
                   {"GPU memory", "(GB)"},
                   {"budget", "(GB)", kRight, TextColumn::Fold::kLeaves},  // as they were given
                   {"host memory", "(GB a node)"},
                   {"budget", "(GB)", kRight, TextColumn::Fold::kLeaves},
                   {"time", "(s)"}});
  for (const auto& [phase, host_bytes, seconds] : forecast.phases) {
    table.add_row({phase.phase, phase.role, phase.tag.empty() ? "-" : phase.tag,
                   gigabytes(phase.device_bytes), budget_cell(options.gpu_memory),
                   gigabytes(host_bytes), budget_cell(options.host_memory),
                   seconds ? fmt::format("{:.3f}", *seconds) : "-"});
  }
  return table.text(width);
}

/// "BF16", or "BF16 -> F8_E4M3" where it is converted on the way.
std::string dtypes_of(const Piece& piece) {
  if (!piece.converts()) return std::string(dtype_name(piece.to));
  return fmt::format("{} -> {}", dtype_name(piece.from), dtype_name(piece.to));
}

std::string listed_table(const Plan& part, const Catalogue& held, size_t width) {
  TextTable table({{"from", "(GPU)"},
                   {"to", "(GPU)"},
                   {"bytes", ""},
                   {"dtype", "", kLeft},
                   {"tensor", "", kLeft, TextColumn::Fold::kHeading},
                   {"rows", "", kLeft},
                   {"columns", "", kLeft},
                   {"why this source", "", kLeft, TextColumn::Fold::kFolds}});
  for (const auto& piece : part.pieces) {
    const auto& [rows, cols] = piece.box;
    table.add_row({fmt::format("{}", piece.source), fmt::format("{}", piece.target),
                   fmt::format("{}", piece.bytes()), dtypes_of(piece),
                   held.tensors()[piece.tensor].name, fmt::format("[{}, {})", rows.begin, rows.end),
                   fmt::format("[{}, {})", cols.begin, cols.end), describe_choice(piece)});
  }
  return table.text(width) + fmt::format("{} pieces, merged into {} strided copies\n",
                                         part.pieces.size(), merge_pieces(part.pieces).size());
}

std::string describe(const Misfit& misfit) {
  return fmt::format("{} needs {} in {}, and has {} by {}", misfit.what,
                     format_bytes(misfit.needed_bytes), misfit.moment,
                     format_bytes(misfit.budget_bytes), misfit.option);
}

std::string verdict(const Forecast& forecast, const ForecastOptions& options,
                    const TextStyle& style) {
  const auto paint = [&](const char* color, const std::string& text) {
    return style.color ? fmt::format("\033[{}m{}\033[0m", color, text) : text;
  };
  std::string out;
  for (const auto& misfit : forecast.misfits) {
    constexpr size_t kKeyWidth = 12;
    out += fmt::format("{:<11} {}\n", "too large",
                       paint("31", fitted(describe(misfit), style.width, kKeyWidth)));
  }
  if (!forecast.misfits.empty())
    return out + fmt::format("{:<11} {}\n", "result", paint("31", "does not fit"));
  const bool has_budget = options.gpu_memory || options.host_memory;
  return fmt::format(
      "{:<11} {}\n", "result",
      has_budget ? paint("32", "fits") : "not compared with a budget: give --gpu-memory");
}

Json traffic_json(const Forecast& forecast) {
  Json rows = Json::array();
  for (size_t row = 0; row < forecast.groups; ++row) {
    const auto begin = forecast.matrix.begin() + static_cast<ptrdiff_t>(row * forecast.groups);
    rows.push_back(std::vector<uint64_t>(begin, begin + forecast.groups));
  }
  return {{"gpus_per_group", forecast.group_gpus}, {"bytes_from_row_to_column", rows}};
}

Json phases_json(const Forecast& forecast) {
  Json phases = Json::array();
  for (const auto& [phase, host_bytes, seconds] : forecast.phases) {
    phases.push_back({{"phase", phase.phase},
                      {"role", phase.role},
                      {"tag", phase.tag.empty() ? Json() : Json(phase.tag)},
                      {"device_peak_bytes", phase.device_bytes},
                      {"host_pinned_bytes", phase.host_bytes},
                      {"host_pinned_bytes_of_node", host_bytes},
                      {"seconds", value_or_null(seconds)}});
  }
  return phases;
}

Json plan_json(const Forecast& forecast) {
  const auto sending = sending_of(forecast);
  return {{"seconds", forecast.plan_seconds},
          {"pieces", forecast.totals.total_pieces},
          {"local_bytes", forecast.totals.local_bytes},
          {"remote_bytes", forecast.totals.remote_bytes},
          {"remote_bytes_lower_bound", forecast.totals.remote_bytes_lower_bound},
          {"most_sent_bytes", sending.most},
          {"mean_sent_bytes", sending.mean()}};
}

Json misfits_json(const Forecast& forecast) {
  Json misfits = Json::array();
  for (const auto& misfit : forecast.misfits) {
    misfits.push_back({{"what", misfit.what},
                       {"moment", misfit.moment},
                       {"needed_bytes", misfit.needed_bytes},
                       {"budget_bytes", misfit.budget_bytes},
                       {"option", misfit.option},
                       {"hint", misfit.hint}});
  }
  return misfits;
}

Json pieces_json(const std::optional<Plan>& listed, const Catalogue& held) {
  if (!listed) return {};
  Json pieces = Json::array();
  for (const auto& piece : listed->pieces) {
    pieces.push_back({{"from", piece.source},
                      {"to", piece.target},
                      {"tensor", held.tensors()[piece.tensor].name},
                      {"source_dtype", dtype_name(piece.from)},
                      {"dtype", dtype_name(piece.to)},
                      {"rows", {piece.box.rows.begin, piece.box.rows.end}},
                      {"columns", {piece.box.cols.begin, piece.box.cols.end}},
                      {"bytes", piece.bytes()},
                      {"why", describe_choice(piece)}});
  }
  return pieces;
}

void add_forecast(Json& json, const Forecast& forecast, const Catalogue& catalogue,
                  const ForecastOptions& options) {
  json["model"] = {{"name", catalogue.model_name()},
                   {"tensors", catalogue.tensors().size()},
                   {"elements", catalogue.elements()},
                   {"bytes", catalogue.bytes()}};
  json["held"] = {{"tensors", forecast.held->tensors().size()}, {"bytes", forecast.held->bytes()}};
  json["trainer"] = forecast.trainer->describe();
  json["inference"] = forecast.inference->describe();
  json["notes"] = forecast.inference->notes();
  json["world"] = {
      {"ranks", 2 * uint64_t{options.gpus}}, {"gpus", options.gpus}, {"nodes", nodes_of(forecast)}};
  json["plan"] = plan_json(forecast);
  json["traffic"] = traffic_json(forecast);
  json["phases"] = phases_json(forecast);
  json["misfits"] = misfits_json(forecast);
  json["pieces"] = pieces_json(forecast.listed, *forecast.held);
}

}  // namespace

std::optional<Error> misfit_error(const Forecast& forecast) {
  if (forecast.misfits.empty()) return std::nullopt;
  const auto& first = forecast.misfits.front();
  return request_error(describe(first), first.hint);
}

std::string render_plan(const Forecast& forecast, const Catalogue& catalogue,
                        const ForecastOptions& options, const TextStyle& style) {
  const size_t width = style.width;
  auto out = metadata(forecast, catalogue, options, width) + "\n" + traffic_table(forecast, width) +
             "\n" + phases_table(forecast, options, width) + "\n";
  if (forecast.listed) out += listed_table(*forecast.listed, *forecast.held, width) + "\n";
  return out + verdict(forecast, options, style);
}

std::string render_plan_json(const Forecast* forecast, const Catalogue* catalogue,
                             const ForecastOptions& options, const std::optional<Error>& error) {
  const auto code = error ? error->code() : ExitCode::kOk;
  Json json = {{"schema_version", 1},
               {"command", "plan"},
               {"ok", code == ExitCode::kOk},
               {"exit_code", static_cast<int>(code)}};
  if (forecast != nullptr) add_forecast(json, *forecast, *catalogue, options);
  json["error"] = error ? error_json(*error) : Json();
  // Paths may hold bytes that are no UTF-8; the report is written all the same.
  return indented_text(json);
}

}  // namespace awex
