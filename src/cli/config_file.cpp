#include <nlohmann/json.hpp>

#include "cli/options.hpp"
#include "model/input_file.hpp"
#include "model/json_input.hpp"

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

void apply_key(CLI::App& command, const std::string& key, const Json& value,
               const std::vector<std::string>& keys) {
  if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
    throw request_error("unknown key", suggestion(key, keys));
  }
  auto* option = command.get_option("--" + key);
  if (option->count() > 0) return;
  const auto text = option_text(*option, value);
  if (!text) return;
  option->add_result(*text);
  option->run_callback();
}

}  // namespace

void apply_config(CLI::App& command, const std::string& file) {
  const auto json = read_object(file);
  const auto keys = config_keys(command);
  for (const auto& [key, value] : json.items()) {
    try {
      apply_key(command, key, value, keys);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}: \"{}\": {}", file, key, error.what()),
                  error.hint());
    }
  }
}

}  // namespace awex
