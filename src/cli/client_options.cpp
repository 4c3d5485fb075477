#include "cli/client_options.hpp"

#include <sstream>
#include <vector>

namespace awex {
namespace {

constexpr const char* kWithJob = "With --job, started alone (asks a job that serve keeps)";

decltype(Scope::tags) parse_tags(const std::string& text) {
  decltype(Scope::tags) tags{};
  std::istringstream names(text + ",");
  for (std::string name; std::getline(names, name, ',');) {
    const auto tag = parse_choice<Tag>(name, {{tag_name(Tag::kWeights), Tag::kWeights},
                                              {tag_name(Tag::kOptimizer), Tag::kOptimizer},
                                              {tag_name(Tag::kKvCache), Tag::kKvCache}});
    tags.at(static_cast<size_t>(tag)) = true;
  }
  return tags;
}

/// Those of a group that were given, as one has to write them.
std::vector<std::string> given_in(const CLI::App& parser, const char* group) {
  std::vector<std::string> names;
  for (const auto* option : parser.get_options()) {
    if (option->get_group() == group && option->count() > 0) {
      names.push_back("--" + option->get_lnames().front());
    }
  }
  return names;
}

Errand errand_of(Command command) {
  switch (command) {
    case Command::kUpdate:
    case Command::kHandOver:
      return Errand::kUpdate;
    case Command::kOffload:
      return Errand::kOffload;
    case Command::kTransfer:
      return Errand::kTransfer;
    case Command::kResume:
    case Command::kTakeBack:
      return Errand::kResume;
  }
  return Errand::kUpdate;
}

/// A whole update is the hand-over and, later, the take-back.
Command command_of_resident(Command command, bool has_scope) {
  if (command == Command::kUpdate) return Command::kHandOver;
  if (command == Command::kResume && !has_scope) return Command::kTakeBack;
  return command;
}

void add_job_directory(CLI::App& parser, std::string& directory) {
  add_value(parser, "--job", "DIR", "The directory of the resident job, as serve was given it", "",
            [&directory](const std::string& text) {
              if (text.empty()) throw request_error("no directory is named", "write --job DIR");
              directory = text;
            });
}

}  // namespace

void add_plain_client_options(CLI::App& parser, PlainClientArguments& options) {
  add_job_directory(parser, options.task.directory);
  add_value(parser, "--config", "FILE",
            "Options as a JSON object, keys without dashes; the command line wins", "",
            [&options](const std::string& text) { options.config_path = text; });
  add_talk_options(parser, options.task.talk);
}

void complete_plain_client_options(CLI::App& parser, PlainClientArguments& options) {
  if (!options.config_path.empty()) apply_config(parser, options.config_path);
  if (options.task.directory.empty()) {
    throw request_error("--job is missing", "name the directory that serve was given: --job DIR");
  }
}

void add_wait(CLI::App& parser, Seconds& patience) {
  add_value(parser, "--wait", "DURATION", "How long to wait for a job to come to DIR", "0s",
            [&patience](const std::string& text) {
              const bool not_at_all = text == "0" || text == "0s";
              patience = not_at_all ? Seconds(0) : parse_duration(text);
            });
}

void add_client_options(CLI::App& parser, Command command, ClientArguments& client) {
  const auto group = parser.option_defaults()->get_group();
  parser.option_defaults()->group(kWithJob);
  add_job_directory(parser, client.directory);
  add_wait(parser, client.patience);
  if (command == Command::kUpdate) {
    parser.add_flag_callback(
        "--no-train", [&client] { client.train = false; },
        "Hand over what the trainer holds, without a training step of the stand-ins before");
  }
  if (command == Command::kOffload || command == Command::kResume) {
    add_value(parser, "--tag", "TAG[,TAG]", "That memory alone: weights, optimizer, kv_cache",
              "what an update moves",
              [&client](const std::string& text) { client.tags = parse_tags(text); });
  }
  add_value(parser, "--on-disconnect", "finish|cancel",
            "What becomes of the command if this process goes away", "finish",
            [&client](const std::string& text) {
              client.cancel_on_disconnect =
                  parse_choice<bool>(text, {{"finish", false}, {"cancel", true}});
            });
  parser.option_defaults()->group(group);
}

void check_client_options(const CLI::App& parser, const ClientArguments& client) {
  const bool with_job = !client.directory.empty();
  const auto wrong = given_in(parser, with_job ? kUnderMpirun : kWithJob);
  if (wrong.empty()) return;
  const auto names = fmt::format("{}", fmt::join(wrong, ", "));
  const auto* verb = wrong.size() == 1 ? "is" : "are";
  if (with_job) {
    throw request_error(
        fmt::format("{} {} for a job that mpirun starts, and the one of --job runs already", names,
                    verb),
        "leave out what was said to serve when the job was started");
  }
  throw request_error(fmt::format("{} {} for a resident job, and --job is missing", names, verb),
                      "name the directory that serve was given: --job DIR");
}

ClientTask make_client_task(const ClientArguments& client, const JobArguments& job) {
  ClientTask task;
  task.directory = client.directory;
  task.patience = client.patience;
  task.talk = job.talk;
  task.json_path = job.json_path;
  task.trace_path = job.trace_path;
  auto& request = task.request;
  request.cancel_on_disconnect = client.cancel_on_disconnect;
  request.command = job.request.command;
  request.command.train = client.train;
  if (client.tags || job.request.job.role) {
    request.command.scope = {job.request.job.role, client.tags.value_or(Scope{}.tags)};
  }
  const auto command = job.request.command.command;
  request.errand = errand_of(command);
  request.command.command = command_of_resident(command, request.command.scope.has_value());
  return task;
}

}  // namespace awex
