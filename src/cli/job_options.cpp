#include "cli/job_options.hpp"

#include <utility>

#include "base/units.hpp"
#include "base/work_progress.hpp"
#include "cli/launcher.hpp"
#include "cli/metrics.hpp"
#include "cli/output_files.hpp"
#include "cycle/setup.hpp"

namespace awex {
namespace {

constexpr const char* kOfBoth = "Options";  ///< Where --help is.

void add_model_options(CLI::App& parser, JobArguments& options) {
  JobOptions& job = options.request.job;
  add_value(parser, "--model", "DIR|preset:NAME",
            "A Hugging Face checkpoint, or a published shape with generated weights; required", "",
            [&job](const std::string& text) { job.model = text; });
  add_value(parser, "--layers", "N", "Keep the first N layers of the model", "all",
            [&job](const std::string& text) { job.layers = parse_count(text); });
  add_value(parser, "--trainer", "SPEC",
            "Layout of the trainer, ENGINE[:key=value,...]: megatron:tp=2, hf", options.trainer,
            [&options](const std::string& text) { options.trainer = text; });
  add_value(parser, "--inference", "SPEC",
            "Layout of the inference engine, ENGINE[:key=value,...]: sglang:tp=2, hf",
            options.inference, [&options](const std::string& text) { options.inference = text; });
}

void add_role(CLI::App& parser, JobOptions& job, bool chooses_memory) {
  auto* role =
      add_value(parser, "--role", "trainer|inference",
                std::string("Role of these ranks, for MPMD launches") +
                    (chooses_memory ? "; with --job: whose memory, of both unless given" : ""),
                "first half of each node's ranks trainer, second half inference",
                [&job](const std::string& text) {
                  job.role = parse_choice<Role>(
                      text, {{"trainer", Role::kTrainer}, {"inference", Role::kInference}});
                });
  if (chooses_memory) role->group(kOfBoth);
}

void add_placement_options(CLI::App& parser, JobOptions& job) {
  add_value(parser, "--backend", "auto|cuda|host",
            "Where memory is: on GPUs, or host (the same on shared host memory); auto is cuda "
            "where there "
            "is a GPU",
            "auto", [&job](const std::string& text) {
              using Choice = std::optional<BackendKind>;
              job.backend = parse_choice<Choice>(
                  text,
                  {{"auto", Choice{}}, {"cuda", BackendKind::kCuda}, {"host", BackendKind::kHost}});
            });
  add_value(parser, "--exchange", "auto|peer|nccl",
            "How weights travel between GPUs: peer (written into the receiver's memory), nccl, or "
            "auto: peer where every GPU reaches every other. On host: peer, else by MPI",
            "auto", [&job](const std::string& text) {
              job.exchange = parse_choice<ExchangeKind>(text, {{"auto", ExchangeKind::kAuto},
                                                               {"peer", ExchangeKind::kPeer},
                                                               {"nccl", ExchangeKind::kNccl}});
            });
  parser.add_flag("--share-gpu", job.share_gpu,
                  "Let several ranks of a role be on one GPU, for tests");
  add_value(parser, "--gpu-memory", "SIZE",
            "Budget of a GPU for both roles together; phases overlap as far as it allows",
            "what is free",
            [&job](const std::string& text) { job.gpu_memory = parse_bytes(text); });
}

void add_work_options(CLI::App& parser, Request& request) {
  JobOptions& job = request.job;
  CommandOptions& command = request.command;
  add_value(parser, "--optimizer", "adamw|none",
            "Optimizer state that the trainer holds: adamw (12 bytes an element) or none", "adamw",
            [&job](const std::string& text) {
              job.optimizer = parse_choice<bool>(text, {{"adamw", true}, {"none", false}});
            });
  add_value(parser, "--kv-cache", "SIZE", "KV cache of each inference rank; 0 for none",
            fmt::format("{}MiB", job.kv_cache_bytes >> 20),
            [&job](const std::string& text) { job.kv_cache_bytes = parse_bytes(text); });
  if (command.command == Command::kUpdate) {
    add_value(parser, "--versions", "N", "How many times to train, hand over and commit",
              fmt::format("{}", command.versions),
              [&command](const std::string& text) { command.versions = parse_count(text); });
  }
  if (command.command == Command::kUpdate || command.command == Command::kHandOver) {
    parser.add_flag_callback(
        "--no-offload", [&job] { job.offload = false; },
        "The cycle without giving memory back, to compare with");
  }
  parser.add_flag("--warm-host-memory", job.warm_host_memory,
                  "Prepare the pinned host memory for offloads in the background from the start");
  add_value(parser, "--timeout", "DURATION", "How long a single wait may take: 30s, 500ms, 5m",
            fmt::format("{:.0f}s", job.timeout.count()),
            [&job](const std::string& text) { job.timeout = parse_duration(text); });
  add_value(parser, "--limits", "on|off", "Measure the links' limits to compare the phases with",
            "on", [&job](const std::string& text) {
              job.measure_limits = parse_choice<bool>(text, {{"on", true}, {"off", false}});
            });
}

void add_config(CLI::App& parser, JobArguments& options) {
  add_value(parser, "--config", "FILE",
            "Options as a JSON object, keys without dashes; the command line wins", "",
            [&options](const std::string& text) { options.config_path = text; });
}

void add_metrics(CLI::App& parser, JobArguments& options) {
  add_value(parser, "--metrics", "FILE",
            "Keep metrics for Prometheus' textfile collector (awex.prom) true after every version "
            "and command",
            "", [&options](const std::string& text) { options.metrics_path = text; });
}

void add_output_options(CLI::App& parser, JobArguments& options) {
  CommandOptions& command = options.request.command;
  add_value(parser, "--verify", "digest|full|off",
            "Proof of the transfer: digest, full (brings and compares every byte "
            "once more) or off",
            "digest", [&command](const std::string& text) {
              command.verify = parse_choice<Verify>(
                  text,
                  {{"digest", Verify::kDigest}, {"full", Verify::kFull}, {"off", Verify::kOff}});
            });
  add_config(parser, options);
  add_value(parser, "--json", "FILE|-",
            "Write the report as JSON; - writes it to stdout instead of the table", "",
            [&options](const std::string& text) { options.json_path = report_path(text); });
  add_value(parser, "--trace", "FILE", "Write a timeline that Perfetto and chrome://tracing open",
            "", [&options](const std::string& text) { options.trace_path = text; });
}

}  // namespace

void add_job_options(CLI::App& parser, Command command, JobArguments& options) {
  options.request.command.command = command;
  parser.option_defaults()->group(kUnderMpirun);
  add_model_options(parser, options);
  add_role(parser, options.request.job,
           command == Command::kOffload || command == Command::kResume);
  add_placement_options(parser, options.request.job);
  add_work_options(parser, options.request);
  add_metrics(parser, options);
  parser.option_defaults()->group(kOfBoth);
  add_output_options(parser, options);
  add_talk_options(parser, options.talk);
}

void add_resident_options(CLI::App& parser, JobArguments& options) {
  options.request.command.command = Command::kHandOver;
  add_model_options(parser, options);
  add_role(parser, options.request.job, /*chooses_memory=*/false);
  add_placement_options(parser, options.request.job);
  add_work_options(parser, options.request);
  add_metrics(parser, options);
  add_config(parser, options);
  add_talk_options(parser, options.talk);
}

void check_outputs(const std::string& json_path, const std::string& trace_path,
                   const std::string& metrics_path) {
  if (trace_path == "-") {
    throw request_error("--trace: the trace cannot go to stdout",
                        "name a file: --trace trace.json");
  }
  if (!trace_path.empty() && trace_path == json_path) {
    throw request_error(fmt::format("--json and --trace both name the file \"{}\"", trace_path),
                        "name two files");
  }
  check_metrics_path(metrics_path);
  for (const auto& [option, path] :
       {std::pair{"--json", json_path}, std::pair{"--trace", trace_path}}) {
    if (metrics_path.empty() || metrics_path != path) continue;
    throw request_error(fmt::format("{} and --metrics both name the file \"{}\"", option, path),
                        "name two files");
  }
}

void read_config(CLI::App& parser, JobArguments& options) {
  if (!options.config_path.empty()) apply_config(parser, options.config_path);
  options.config_path.clear();
}

void complete_job_options(CLI::App& parser, JobArguments& options) {
  read_config(parser, options);
  if (options.request.job.model.empty()) {
    throw request_error("--model is missing",
                        "name a checkpoint directory, or try --model preset:tiny-dense");
  }
  check_outputs(options.json_path, options.trace_path, options.metrics_path);
  options.request.job.trainer = options.trainer;
  options.request.job.inference = options.inference;
}

void check_model_of_rank_0(const JobOptions& options) {
  if (launched_rank().value_or(0) != 0) return;
  NoMonitor nobody;
  work::attend([options] { check_model_and_layouts(options); },
               {"reading the model's config", 0, 0}, options.timeout, nobody);
}

}  // namespace awex
