#include "cli/program.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "base/build_identity.hpp"
#include "cli/help_text.hpp"
#include "cli/options.hpp"
#include "memory/device.hpp"

namespace awex {
namespace {

const char* const kDescription =
    "Hands GPU memory and weights over between an RL trainer and an inference engine that take "
    "turns on the same GPUs. One MPI rank per role and GPU.";

const char* const kExamples =
    "Examples:\n"
    "  mpirun -np 2 awex-colocate update --model preset:tiny-dense --backend host\n"
    "  mpirun -np 4 awex-colocate update --model DIR --trainer megatron:tp=2 \\\n"
    "      --inference sglang:tp=2 --versions 3 --json report.json --trace trace.json\n"
    "  awex-colocate plan --model preset:qwen3-8b --trainer megatron:tp=4 \\\n"
    "      --inference sglang:tp=2 --gpus 16 --gpu-memory 80GB\n"
    "  mpirun -np 2 awex-colocate doctor\n"
    "  awex-colocate checkpoint --preset tiny-moe --out DIR\n"
    "  awex-colocate digest DIR\n"
    "  awex-colocate update --job DIR && awex-colocate status --job DIR\n"
    "  awex-colocate help plan\n"
    "\n"
    "Exit codes: 0 done, 1 failed at run time, 2 the request is wrong, 3 bytes\n"
    "differ, 4 a deadline passed, 5 a peer was lost.";

std::vector<Subcommand> add_subcommands(CLI::App& root) {
  return {add_update(root), add_offload(root),    add_transfer(root), add_resume(root),
          add_serve(root),  add_status(root),     add_stop(root),     add_restore(root),
          add_plan(root),   add_checkpoint(root), add_digest(root),   add_doctor(root),
          add_help(root)};
}

}  // namespace

std::string version_text() {
  return fmt::format("awex-colocate {} (backends host{})", build_identity(),
                     built_with_cuda() ? " and cuda" : "");
}

std::vector<Subcommand> describe_program(CLI::App& root) {
  root.name("awex-colocate");
  root.description(kDescription);
  root.set_version_flag("-V,--version", version_text(),
                        "Print the version and the built-in backends");
  root.formatter(make_help_formatter(text_width(STDOUT_FILENO)));
  // refuse_unknown_arguments tells of what is unknown, with the nearest name.
  root.allow_extras();
  // Another command's name is a value, or an argument too many.
  root.require_subcommand(0, 1);
  auto commands = add_subcommands(root);
  for (const auto& command : commands) command.parser->allow_extras();
  root.footer(kExamples);  // after the commands, which would inherit it
  return commands;
}

}  // namespace awex
