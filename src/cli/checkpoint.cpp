#include "model/checkpoint.hpp"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <memory>
#include <thread>

#include "base/signal_name.hpp"
#include "base/units.hpp"
#include "base/wait.hpp"
#include "cli/options.hpp"
#include "cli/subcommand.hpp"
#include "model/presets.hpp"

namespace awex {
namespace {

struct CheckpointOptions {
  std::string preset;
  std::string directory;
  std::optional<uint64_t> layers;
  uint64_t max_shard_bytes = kDefaultShardBytes;
  TalkOptions talk;
};

void check(const CheckpointOptions& options) {
  if (options.preset.empty()) {
    throw request_error("--preset is missing",
                        fmt::format("known: {}", fmt::join(preset_names(), ", ")));
  }
  if (options.directory.empty()) {
    throw request_error("--out is missing", "name a directory that does not exist yet");
  }
  if (options.max_shard_bytes == 0) {
    throw request_error("--max-shard-size: a file of 0 bytes holds no tensor", "try 5GB");
  }
}

std::atomic<int> g_signal{0};

void note_signal(int number) { g_signal = number; }

/// Signals are noted, not obeyed at once: a half written checkpoint is removed first.
void note_signals() {
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    // Under nohup SIGHUP stays ignored.
    if (::signal(number, note_signal) == SIG_IGN && number == SIGHUP) ::signal(number, SIG_IGN);
  }
}

void look_for_signal() {
  const int number = g_signal;
  if (number == 0) return;
  throw runtime_error(
      fmt::format("told to end by {}; nothing is left of the checkpoint", signal_name(number)));
}

ExitCode run_checkpoint(const CheckpointOptions& options) {
  speak(options.talk);
  const auto source = open_model("preset:" + options.preset, options.layers);
  const auto& catalogue = source->catalogue();
  const Stopwatch watch;
  ThreadPool pool(std::thread::hardware_concurrency());
  note_signals();
  write_checkpoint(*source, options.directory, options.max_shard_bytes, pool, look_for_signal);
  log::note(fmt::format("wrote {}: {} tensors, {} in {}", options.directory,
                        catalogue.tensors().size(), format_bytes(catalogue.bytes()),
                        format_seconds(watch.seconds())));
  return ExitCode::kOk;
}

}  // namespace

Subcommand add_checkpoint(CLI::App& root) {
  const auto options = std::make_shared<CheckpointOptions>();
  auto* parser = root.add_subcommand(
      "checkpoint", "Write a Hugging Face style checkpoint of a preset, for trying and testing");
  parser->footer(
      "Examples:\n"
      "  awex-colocate checkpoint --preset tiny-moe --out DIR\n"
      "  awex-colocate checkpoint --preset qwen3-8b --layers 2 --out DIR");
  add_value(*parser, "--preset", "NAME",
            fmt::format("Shape of the model, required: {}", fmt::join(preset_names(), ", ")), "",
            [o = options.get()](const std::string& text) { o->preset = text; });
  add_value(*parser, "--out", "DIR", "Directory to write, which must not exist; required", "",
            [o = options.get()](const std::string& text) { o->directory = text; });
  add_value(*parser, "--layers", "N", "Keep the first N layers of the model", "all",
            [o = options.get()](const std::string& text) { o->layers = parse_count(text); });
  add_value(
      *parser, "--max-shard-size", "SIZE", "Most bytes of tensors in one file", "5GB",
      [o = options.get()](const std::string& text) { o->max_shard_bytes = parse_bytes(text); });
  add_talk_options(*parser, options->talk);
  return {parser, [options] { check(*options); },
          [options](int* /*argc*/, char*** /*argv*/) { return run_checkpoint(*options); }};
}

}  // namespace awex
