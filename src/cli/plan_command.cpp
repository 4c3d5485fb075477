#include <unistd.h>

#include <charconv>
#include <cmath>
#include <memory>

#include "base/checked.hpp"
#include "base/units.hpp"
#include "cli/options.hpp"
#include "cli/publish.hpp"
#include "cli/render_plan.hpp"
#include "cli/subcommand.hpp"
#include "cycle/forecast.hpp"
#include "model/weights.hpp"

namespace awex {
namespace {

/// The most GPUs that plan takes: what is larger is a slip of the finger.
constexpr uint32_t kMostGpus = 65536;

struct PlanOptions {
  ModelName model;
  std::optional<uint64_t> layers;
  ForecastOptions forecast;
  std::string trainer = forecast.trainer.text();  ///< As typed, for `forecast`.
  std::string inference = forecast.inference.text();
  std::optional<uint32_t> listed_gpu;
  std::string config_path;
  std::string json_path;
  TalkOptions talk;
};

uint32_t parse_gpus(const std::string& text) {
  const uint64_t gpus = parse_count(text);
  if (gpus <= kMostGpus) return static_cast<uint32_t>(gpus);
  throw request_error(fmt::format("{} is more than plan counts", gpus),
                      fmt::format("write a number from 1 to {}", kMostGpus));
}

/// Payload bytes per second from a number of GB/s.
double parse_speed(const std::string& text) {
  double speed = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, speed);
  if (error != std::errc{} || stop != end || !std::isfinite(speed) || speed <= 0) {
    throw request_error(fmt::format("\"{}\" is not a speed", text),
                        "write a positive number of GB/s, as 55 or 12.5");
  }
  return speed * 1e9;
}

void add_job(CLI::App& parser, PlanOptions& options) {
  auto& forecast = options.forecast;
  add_value(parser, "--model", "DIR|preset:NAME",
            "A Hugging Face checkpoint, or a published shape; required", "",
            [&options](const std::string& text) { options.model = text; });
  add_value(parser, "--layers", "N", "Keep the first N layers of the model", "all",
            [&options](const std::string& text) { options.layers = parse_count(text); });
  add_value(parser, "--trainer", "SPEC", "Layout of the trainer, ENGINE[:key=value,...]",
            options.trainer, [&options](const std::string& text) { options.trainer = text; });
  add_value(parser, "--inference", "SPEC", "Layout of the inference engine, ENGINE[:key=value,...]",
            options.inference, [&options](const std::string& text) { options.inference = text; });
  add_value(parser, "--gpus", "N", "GPUs of the cluster, each with a rank of both roles", "1",
            [&forecast](const std::string& text) { forecast.gpus = parse_gpus(text); });
  add_value(parser, "--gpus-per-node", "G", "GPUs of a node", "8",
            [&forecast](const std::string& text) { forecast.gpus_per_node = parse_gpus(text); });
}

void add_memory(CLI::App& parser, ForecastOptions& forecast) {
  add_value(parser, "--optimizer", "NAME",
            "Optimizer state that the trainer holds: adamw (12 bytes an element) or none", "adamw",
            [&forecast](const std::string& text) {
              forecast.optimizer = parse_choice<bool>(text, {{"adamw", true}, {"none", false}});
            });
  add_value(parser, "--kv-cache", "SIZE", "KV cache of each inference rank; 0 for none",
            fmt::format("{}MiB", forecast.kv_cache_bytes >> 20),
            [&forecast](const std::string& text) { forecast.kv_cache_bytes = parse_bytes(text); });
  add_value(parser, "--gpu-memory", "SIZE", "Budget of a GPU for both roles together",
            "not compared",
            [&forecast](const std::string& text) { forecast.gpu_memory = parse_bytes(text); });
  add_value(parser, "--host-memory", "SIZE", "Budget of a node for pinned host memory",
            "not compared",
            [&forecast](const std::string& text) { forecast.host_memory = parse_bytes(text); });
  parser.add_flag_callback(
      "--no-offload", [&forecast] { forecast.offload = false; },
      "The cycle without giving memory back");
}

void add_links(CLI::App& parser, LinkSpeeds& links) {
  const auto add = [&](const char* name, const char* help, double LinkSpeeds::*speed) {
    add_value(parser, name, "GB/s", help, fmt::format("{:.0f}", links.*speed / 1e9),
              [&links, speed](const std::string& text) { links.*speed = parse_speed(text); });
  };
  add("--link-d2h", "Between a GPU and pinned host memory; the default was measured on an H100",
      &LinkSpeeds::host);
  add("--link-d2d", "On a GPU, into another layout; the default was measured on an H100",
      &LinkSpeeds::device);
  add("--link-node", "Between GPUs of a node; the default is assumed (NVLink 4)",
      &LinkSpeeds::node);
  add("--network", "Of a GPU to other nodes; the default is assumed (400 Gb/s)",
      &LinkSpeeds::network);
}

void add_output(CLI::App& parser, PlanOptions& options) {
  add_value(parser, "--list", "GPU", "List the pieces that a GPU receives and sends, and why",
            "none", [&options](const std::string& text) {
              uint32_t gpu = 0;
              const char* end = text.data() + text.size();
              const auto [stop, error] = std::from_chars(text.data(), end, gpu);
              if (error != std::errc{} || stop != end) {
                throw request_error(fmt::format("\"{}\" is not a GPU", text),
                                    "GPUs are numbered from 0");
              }
              options.listed_gpu = gpu;
            });
  add_value(parser, "--config", "FILE",
            "Options as a JSON object, keys without dashes; the command line wins", "",
            [&options](const std::string& text) { options.config_path = text; });
  add_value(parser, "--json", "FILE|-",
            "Write the plan as JSON; - writes it to stdout instead of the tables", "",
            [&options](const std::string& text) { options.json_path = report_path(text); });
  add_talk_options(parser, options.talk);
}

void complete(CLI::App& parser, const PlanOptions& options) {
  if (!options.config_path.empty()) apply_config(parser, options.config_path);
  if (options.model.empty()) {
    throw request_error("--model is missing",
                        "name a checkpoint directory, or try --model preset:tiny-dense");
  }
  if (options.listed_gpu && *options.listed_gpu >= options.forecast.gpus) {
    throw request_error(fmt::format("--list: there is no GPU {}, --gpus is {}", *options.listed_gpu,
                                    options.forecast.gpus),
                        "GPUs are numbered from 0");
  }
}

/// The plan, and what becomes of it.
CommandEnd make_plan(PlanOptions& options) {
  CommandEnd end;
  const auto render = [&](const Forecast* forecast, const Catalogue* catalogue) {
    end.code = end.error ? end.error->code() : ExitCode::kOk;
    end.files.json = render_plan_json(forecast, catalogue, options.forecast, end.error);
    if (options.json_path == "-") end.to_stdout = end.files.json;
  };
  try {
    const auto model = read_model_shape(options.model, options.layers);
    options.forecast.trainer = options.trainer;
    options.forecast.inference = options.inference;
    for (const auto& remark : model.remarks) log::warning(remark);
    const auto& catalogue = model.catalogue;
    const auto forecast = make_forecast(catalogue, options.forecast, options.listed_gpu);
    end.error = misfit_error(forecast);
    render(&forecast, &catalogue);
    if (options.json_path != "-") {
      const TextStyle style{locale_is_utf8(), use_color(options.talk.color, STDOUT_FILENO),
                            text_width(STDOUT_FILENO)};
      end.to_stdout = render_plan(forecast, catalogue, options.forecast, style);
    }
  } catch (const Error& error) {
    end.error = error;
    render(nullptr, nullptr);
  }
  return end;
}

ExitCode run_plan(PlanOptions& options) {
  speak(options.talk);
  const auto unfinished =
      render_plan_json(nullptr, nullptr, options.forecast, runtime_error("the plan has not ended"));
  ReportFiles files;
  try {
    files.open(options.json_path, "", OutputTexts{unfinished, ""});
  } catch (const Error& error) {
    log::error(error);
    return error.code();
  }
  return publish(make_plan(options), files, {});
}

}  // namespace

Subcommand add_plan(CLI::App& root) {
  const auto options = std::make_shared<PlanOptions>();
  auto* parser = root.add_subcommand(
      "plan", "Foretell an update without GPUs: what moves where, memory and time");
  parser->footer(
      "Examples:\n"
      "  awex-colocate plan --model preset:qwen3-8b --trainer megatron:tp=4 \\\n"
      "      --inference sglang:tp=2 --gpus 16 --gpu-memory 80GB\n"
      "  awex-colocate plan --model preset:tiny-dense --gpus 2 --list 0");
  add_job(*parser, *options);
  add_memory(*parser, options->forecast);
  add_links(*parser, options->forecast.links);
  add_output(*parser, *options);
  return {parser, [parser, options] { complete(*parser, *options); },
          [options](int* /*argc*/, char*** /*argv*/) { return run_plan(*options); }};
}

}  // namespace awex
