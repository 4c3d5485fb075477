#include <nlohmann/json.hpp>

#include <algorithm>
#include <set>

#include "cli/options.hpp"
#include "model/input_file.hpp"
#include "model/json_input.hpp"

// CLI11's own reading of config files (2.1 and 2.4 alike) does not do: it reads the main command's
// file alone, while each of our commands has its own options; it calls "quiet" in a file and -v on
// the command line a contradiction; and it tells neither the nearest key nor whose value is wrong.

namespace awex {
namespace {

using Json = nlohmann::json;

Json read_object(const std::string& file) {
  constexpr uint64_t kMaxBytes = uint64_t{1} << 20;
  auto json = parse_json(read_text(file, kMaxBytes), file);
  if (!json.is_object()) {
    throw request_error(fmt::format("{} holds a JSON {}, not an object", file, json.type_name()),
                        "write the options as {\"model\": \"preset:tiny-dense\", \"versions\": 3}");
  }
  return json;
}

/// Long names of a command's options that may stand in a file.
std::vector<std::string> config_keys(const CLI::App& command) {
  std::vector<std::string> keys;
  for (const auto* option : command.get_options()) {
    for (const auto& name : option->get_lnames()) {
      if (name != "help" && name != "config") keys.push_back(name);
    }
  }
  return keys;
}

bool is_flag(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

/// The text that the command line would have for a value; absent for a flag that is off.
std::optional<std::string> option_text(const CLI::Option& option, const Json& value) {
  if (is_flag(option)) {
    if (!value.is_boolean()) {
      throw request_error(fmt::format("{} is no value for a switch", shown(value)),
                          "write true or false");
    }
    return value.get<bool>() ? std::optional<std::string>("true") : std::nullopt;
  }
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number()) return value.dump();
  throw request_error(fmt::format("a {} is no value for an option", value.type_name()),
                      "write a string or a number, as on the command line");
}

/// What the command line has said, before any key of a file is applied.
class CommandLine {
 public:
  explicit CommandLine(const CLI::App& command) {
    for (const auto* option : command.get_options()) {
      if (option->count() > 0) given_.insert(option);
    }
  }

  /// Whether it gave the option, or one that excludes it.
  [[nodiscard]] bool decides(const CLI::Option& option) const {
    if (given_.count(&option) > 0) return true;
    const auto excluded = option.get_excludes();
    return std::any_of(excluded.begin(), excluded.end(),
                       [&](const auto* other) { return given_.count(other) > 0; });
  }

 private:
  std::set<const CLI::Option*> given_;
};

void apply_key(CLI::App& command, const std::string& key, const Json& value,
               const std::vector<std::string>& keys, const CommandLine& given) {
  if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
    throw request_error("unknown key", suggestion(key, keys));
  }
  auto* option = command.get_option("--" + key);
  if (given.decides(*option)) return;
  const auto text = option_text(*option, value);
  if (!text) return;
  for (const auto* other : option->get_excludes()) {
    if (other->count() == 0) continue;
    throw request_error(
        fmt::format("excludes \"{}\", which is set too", other->get_lnames().front()),
        "keep one of them");
  }
  option->add_result(*text);
  option->run_callback();
}

}  // namespace

void apply_config(CLI::App& command, const std::string& file) {
  const auto json = read_object(file);
  const auto keys = config_keys(command);
  const CommandLine given(command);
  for (const auto& [key, value] : json.items()) {
    try {
      apply_key(command, key, value, keys, given);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}: \"{}\": {}", file, key, error.what()),
                  error.hint());
    }
  }
}

std::string text_in_config(const std::string& file, const char* key) noexcept {
  try {
    return file.empty() ? "" : read_object(file).value(key, "");
  } catch (const std::exception&) {
    return {};  // whoever reads the options of the file tells what is wrong with it
  }
}

}  // namespace awex
