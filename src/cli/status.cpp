#include <memory>
#include <optional>

#include "cli/client_command.hpp"
#include "cli/subcommand.hpp"
#include "cli/watch_status.hpp"

namespace awex {
namespace {

struct StatusArguments : PlainClientArguments {
  std::optional<Seconds> interval;  ///< Of --watch.
};

void add_watch(CLI::App& parser, StatusArguments& options) {
  constexpr Seconds kInterval{1};
  add_value(parser, "--watch", "[INTERVAL]",
            "Show it again and again; in a log when something has changed", "every 1s",
            [&options, kInterval](const std::string& text) {
              // What the parser makes of none.
              const bool is_default = text.empty() || text == "true";
              options.interval = is_default ? kInterval : parse_duration(text);
            });
}

}  // namespace

Subcommand add_status(CLI::App& root) {
  const auto options = std::make_shared<StatusArguments>();
  options->task.request.errand = Errand::kStatus;
  auto* parser = root.add_subcommand(
      "status", "Show what a resident job does and holds, also while a command runs");
  parser->footer(
      "Examples:\n"
      "  awex-colocate status --job DIR\n"
      "  awex-colocate status --job DIR --watch 5s");
  add_watch(*parser, *options);
  add_wait(*parser, options->task.patience);
  add_value(
      *parser, "--json", "FILE|-",
      "Write the status as JSON; - writes it to stdout instead of the table", "",
      [task = &options->task](const std::string& text) { task->json_path = report_path(text); });
  add_plain_client_options(*parser, *options);
  return {parser, [parser, options] { complete_plain_client_options(*parser, *options); },
          [options](int* /*argc*/, char*** /*argv*/) {
            return options->interval ? watch_status(options->task, *options->interval)
                                     : run_client(options->task);
          }};
}

}  // namespace awex
