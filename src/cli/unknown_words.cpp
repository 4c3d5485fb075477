// What a user may have meant by a word that no option or command takes.

#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "cli/options.hpp"
#include "model/presets.hpp"

namespace awex {
namespace {

using Arguments = std::vector<std::string_view>;

/// A word that people use for another.
struct OtherWord {
  const char* word;
  const char* meant;
};

template <size_t N>
std::string meant_by(std::string_view word, const std::array<OtherWord, N>& others) {
  for (const auto& other : others) {
    if (word == other.word) return other.meant;
  }
  return {};
}

constexpr std::array<OtherWord, 31> kOtherCommands{
    {{"run", "update"},        {"sync", "update"},
     {"train", "update"},      {"cycle", "update"},
     {"start", "serve"},       {"daemon", "serve"},
     {"server", "serve"},      {"kill", "stop"},
     {"quit", "stop"},         {"exit", "stop"},
     {"end", "stop"},          {"shutdown", "stop"},
     {"ls", "status"},         {"ps", "status"},
     {"info", "status"},       {"show", "status"},
     {"list", "status"},       {"check", "doctor"},
     {"test", "doctor"},       {"diagnose", "doctor"},
     {"verify", "digest"},     {"hash", "digest"},
     {"checksum", "digest"},   {"save", "checkpoint"},
     {"export", "checkpoint"}, {"generate", "checkpoint"},
     {"recover", "restore"},   {"forecast", "plan"},
     {"estimate", "plan"},     {"sleep", "offload"},
     {"wake", "resume"}}};

constexpr std::array<OtherWord, 14> kOtherChoices{{{"gpu", "cuda"},
                                                   {"nvidia", "cuda"},
                                                   {"cpu", "host"},
                                                   {"yes", "on"},
                                                   {"true", "on"},
                                                   {"1", "on"},
                                                   {"no", "off"},
                                                   {"false", "off"},
                                                   {"0", "off"},
                                                   {"adam", "adamw"},
                                                   {"train", "trainer"},
                                                   {"rollout", "inference"},
                                                   {"p2p", "peer"},
                                                   {"all", "full"}}};

/// Options of layouts, as engines' own command lines and people call them.
constexpr std::array<OtherWord, 20> kLayoutKeys{{{"dp", "dp"},
                                                 {"dp-size", "dp"},
                                                 {"data-parallel-size", "dp"},
                                                 {"tp", "tp"},
                                                 {"tp-size", "tp"},
                                                 {"tensor-parallel-size", "tp"},
                                                 {"tensor-model-parallel-size", "tp"},
                                                 {"pp", "pp"},
                                                 {"pp-size", "pp"},
                                                 {"pipeline-parallel-size", "pp"},
                                                 {"pipeline-model-parallel-size", "pp"},
                                                 {"ep", "ep"},
                                                 {"ep-size", "ep"},
                                                 {"expert-parallel-size", "ep"},
                                                 {"expert-model-parallel-size", "ep"},
                                                 {"cp", "cp"},
                                                 {"context-parallel-size", "cp"},
                                                 {"vpp", "vpp"},
                                                 {"etp", "etp"},
                                                 {"shard", "shard"}}};

/// Options of launchers, which stand before the program's name.
constexpr std::array<const char*, 14> kLaunchOptions{"np",
                                                     "n",
                                                     "N",
                                                     "ntasks",
                                                     "nodes",
                                                     "oversubscribe",
                                                     "hostfile",
                                                     "machinefile",
                                                     "host",
                                                     "bind-to",
                                                     "map-by",
                                                     "allow-run-as-root",
                                                     "ntasks-per-node",
                                                     "mpi"};

std::string without_dashes(std::string_view word) {
  const auto begin = word.find_first_not_of('-');
  return begin == std::string_view::npos ? "" : std::string(word.substr(begin));
}

std::string in_small_letters(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
  return text;
}

const CLI::App& root_of(const CLI::App& command) {
  const auto* parent = command.get_parent();
  return parent == nullptr ? command : *parent;
}

/// As one has to type it.
std::string called(const CLI::App& command) {
  const auto& root = root_of(command);
  return &root == &command || root.get_name().empty() ? command.get_display_name()
                                                      : root.get_name() + " " + command.get_name();
}

bool has_option(const CLI::App& command, const std::string& name) {
  return command.get_option_no_throw("--" + name) != nullptr;
}

std::vector<std::string> command_names(const CLI::App& root) {
  std::vector<std::string> names;
  for (const auto* command : root.get_subcommands(nullptr)) names.push_back(command->get_name());
  return names;
}

/// The value that an unknown option was given: behind '=', or the next argument; "X" for none.
std::string value_of(std::string_view word, const Arguments& arguments, const char* otherwise) {
  const auto equals = word.find('=');
  if (equals != std::string_view::npos) return std::string(word.substr(equals + 1));
  const auto at = std::find(arguments.begin(), arguments.end(), word);
  if (at == arguments.end() || at + 1 == arguments.end()) return otherwise;
  const auto next = *(at + 1);
  return next.empty() || next.front() == '-' ? otherwise : std::string(next);
}

std::string without_prefix(const std::string& preset) {
  return preset.substr(preset.find(':') == std::string::npos ? 0 : preset.find(':') + 1);
}

/// --preset where it is --model, or the reverse.
std::string other_model_option(const CLI::App& command, const std::string& name,
                               std::string_view word, const Arguments& arguments) {
  const auto value = without_prefix(value_of(word, arguments, "NAME"));
  if (name == "preset" && has_option(command, "model")) {
    return fmt::format("write --model preset:{}", value);
  }
  if (name == "model" && has_option(command, "preset")) {
    return fmt::format("write --preset {}", value);
  }
  return {};
}

/// Where a layout's option belongs.
std::string layout_hint(const CLI::App& command, const std::string& name, std::string_view word,
                        const Arguments& arguments) {
  if (!has_option(command, "trainer")) return {};
  const auto key = meant_by(name, kLayoutKeys);
  if (key.empty()) return {};
  if (key == "dp") {
    return "leave it out: data parallel is what the other options of the layouts leave of the "
           "ranks";
  }
  const auto value = value_of(word, arguments, "N");
  if (key == "shard") return fmt::format("it is an option of fsdp: --trainer fsdp:shard={}", value);
  const auto trainer = fmt::format("--trainer megatron:{}={}", key, value);
  if (key == "cp" || key == "vpp" || key == "etp") {
    return fmt::format("it is an option of megatron: {}", trainer);
  }
  return fmt::format("each layout has its own: {} --inference sglang:{}={}", trainer, key, value);
}

std::string launch_hint(const CLI::App& command, const std::string& name) {
  const bool is_of_launcher =
      std::find(kLaunchOptions.begin(), kLaunchOptions.end(), name) != kLaunchOptions.end();
  if (!is_of_launcher || !has_option(command, "trainer")) return {};
  return fmt::format(
      "it is an option of mpirun or srun, and stands before the program: mpirun -np "
      "2 {}",
      called(command));
}

/// The commands that have the option.
std::string owner_hint(const CLI::App& command, const std::string& name) {
  const auto& root = root_of(command);
  std::vector<std::string> owners;
  for (const auto* other : root.get_subcommands(nullptr)) {
    if (has_option(*other, name)) owners.push_back(other->get_name());
  }
  if (owners.empty()) return {};
  for (const auto* given : root.get_subcommands()) {
    if (&root == &command && has_option(*given, name)) owners = {given->get_name()};
  }
  if (&root != &command) {
    return fmt::format("it is an option of {}", fmt::join(owners, ", "));
  }
  return fmt::format("options stand behind the command that has them: {} {} --{}",
                     root.get_display_name(), owners.front(), name);
}

std::string option_hint(const CLI::App& command, std::string_view word,
                        const Arguments& arguments) {
  const auto typed = without_dashes(word.substr(0, word.find('=')));
  const auto name = in_small_letters(typed);
  if (auto hint = other_model_option(command, name, word, arguments); !hint.empty()) return hint;
  if (auto hint = layout_hint(command, name, word, arguments); !hint.empty()) return hint;
  if (auto hint = launch_hint(command, typed); !hint.empty()) return hint;
  if (has_option(command, name)) return fmt::format("did you mean \"--{}\"?", name);
  if (auto hint = owner_hint(command, name); !hint.empty()) return hint;
  if (name == "dry-run" && has_option(command, "trainer")) {
    return fmt::format("{} plan foretells an update without doing it", root_of(command).get_name());
  }
  std::vector<std::string> known;
  for (const auto* option : command.get_options()) {
    for (const auto& other : option->get_lnames()) known.push_back("--" + other);
  }
  auto nearest = nearest_name("--" + name, known);
  // "--num-gpus" is no slip of the finger.
  constexpr size_t kLongName = 4;
  for (const auto& other : known) {
    const auto bare = other.substr(2);
    if (nearest.empty() && bare.size() >= kLongName && name.ends_with("-" + bare)) nearest = other;
  }
  return nearest.empty() ? fmt::format("{} --help lists what is known", called(command))
                         : fmt::format("did you mean \"{}\"?", nearest);
}

std::string command_hint(const CLI::App& root, const std::string& word) {
  const auto small = in_small_letters(word);
  if (small == "version") return fmt::format("did you mean \"{} --version\"?", called(root));
  const auto known = command_names(root);
  auto meant = meant_by(small, kOtherCommands);
  if (meant.empty()) {
    std::vector<std::string> begin_so;
    for (const auto& name : known) {
      if (small.size() > 1 && name.rfind(small, 0) == 0) begin_so.push_back(name);
    }
    meant = begin_so.size() == 1 ? begin_so.front() : nearest_name(small, known);
  }
  return meant.empty() ? fmt::format("{} --help lists the commands", called(root))
                       : fmt::format("did you mean \"{}\"?", meant);
}

/// Of "tp=2" behind "--trainer megatron": a spec is one word.
std::string split_spec_hint(const std::string& word, const Arguments& arguments) {
  const auto at = std::find(arguments.begin(), arguments.end(), word);
  if (word.find('=') == std::string::npos || at == arguments.end()) return {};
  for (auto before = at; before != arguments.begin();) {
    --before;
    for (const std::string_view option : {"--trainer", "--inference"}) {
      std::string spec;
      if (*before == option && before + 1 < at) spec = *(before + 1);
      if (before->rfind(std::string(option) + "=", 0) == 0)
        spec = before->substr(option.size() + 1);
      if (spec.empty()) continue;
      return fmt::format("a layout is one word: {} {}{}{}", option, spec,
                         spec.find(':') == std::string::npos        ? ":"
                         : spec.back() == ':' || spec.back() == ',' ? ""
                                                                    : ",",
                         word);
    }
  }
  return {};
}

std::string argument_hint(const CLI::App& command, const std::string& word,
                          const Arguments& arguments) {
  if (auto hint = split_spec_hint(word, arguments); !hint.empty()) return hint;
  if (word.find('=') != std::string::npos && has_option(command, word.substr(0, word.find('=')))) {
    return fmt::format("write --{}", word);
  }
  std::error_code ignored;
  const bool is_directory = std::filesystem::is_directory(word, ignored);
  const bool is_model =
      word.rfind("preset:", 0) == 0 || is_directory || !presets_like(word).empty();
  const auto open = [&](const char* name) {
    return has_option(command, name) &&
           command.get_option_no_throw(std::string("--") + name)->count() == 0;
  };
  if (open("model") && open("job") && !is_model) {
    return fmt::format("write --model {}, or --job {} to ask a resident job", word, word);
  }
  if (open("model") && is_model) return fmt::format("write --model {}", word);
  if (open("preset") && is_model) return fmt::format("write --preset {}", without_prefix(word));
  if (open("job")) return fmt::format("write --job {}", word);
  return fmt::format("{} --help lists what is known", called(command));
}

Error two_commands(const CLI::App& root, const std::string& first, const std::string& second) {
  const auto& name = root.get_name();
  return request_error(fmt::format("\"{}\" and \"{}\" are two commands", first, second),
                       first == "help"
                           ? fmt::format("one command a call: {} help {}", name, second)
                           : fmt::format("one command a call: {} {} ..., then {} {} ...", name,
                                         first, name, second));
}

/// The first word of `command` that nobody took, but for "--".
std::string first_unknown(const CLI::App& command) {
  for (auto& word : command.remaining()) {
    if (word != "--") return std::move(word);
  }
  return {};
}

}  // namespace

std::string choice_hint(std::string_view text, const std::vector<std::string>& names) {
  const auto meant = meant_by(in_small_letters(std::string(text)), kOtherChoices);
  const bool is_known = std::find(names.begin(), names.end(), meant) != names.end();
  return is_known ? fmt::format("did you mean \"{}\"?", meant) : suggestion(text, names);
}

void refuse_unknown_arguments(const CLI::App& command, const Arguments& arguments) {
  const auto word = first_unknown(command);
  if (word.empty()) return;
  if (word.front() == '-') {
    throw request_error(fmt::format("unknown option \"{}\"", word.substr(0, word.find('='))),
                        option_hint(command, word, arguments));
  }
  const auto& root = root_of(command);
  const auto commands = command_names(root);
  const auto given = root.get_subcommands();
  const bool is_command = std::find(commands.begin(), commands.end(), word) != commands.end();
  if (is_command && !given.empty()) throw two_commands(root, given.front()->get_name(), word);
  if (&root == &command && !commands.empty()) {
    throw request_error(fmt::format("unknown command \"{}\"", word), command_hint(root, word));
  }
  throw request_error(fmt::format("unknown argument \"{}\"", word),
                      argument_hint(command, word, arguments));
}

}  // namespace awex
