#include "serve/protocol.hpp"

#include <array>

#include "base/error_json.hpp"
#include "base/json_values.hpp"
#include "model/json_fields.hpp"
#include "model/json_input.hpp"

namespace awex {
namespace {

using nlohmann::json;

constexpr std::array kErrands{
    Named<Errand>{"update", Errand::kUpdate},     Named<Errand>{"offload", Errand::kOffload},
    Named<Errand>{"transfer", Errand::kTransfer}, Named<Errand>{"resume", Errand::kResume},
    Named<Errand>{"restore", Errand::kRestore},   Named<Errand>{"status", Errand::kStatus},
    Named<Errand>{"stop", Errand::kStop}};

/// Unlike command_name, one name for each.
constexpr std::array kCommands{Named<Command>{"update", Command::kUpdate},
                               Named<Command>{"offload", Command::kOffload},
                               Named<Command>{"transfer", Command::kTransfer},
                               Named<Command>{"resume", Command::kResume},
                               Named<Command>{"hand_over", Command::kHandOver},
                               Named<Command>{"take_back", Command::kTakeBack}};

constexpr std::array kVerifies{Named<Verify>{"digest", Verify::kDigest},
                               Named<Verify>{"full", Verify::kFull},
                               Named<Verify>{"off", Verify::kOff}};

constexpr std::array kEvents{Named<Event::Kind>{"queued", Event::Kind::kQueued},
                             Named<Event::Kind>{"started", Event::Kind::kStarted},
                             Named<Event::Kind>{"phase", Event::Kind::kPhase},
                             Named<Event::Kind>{"done", Event::Kind::kDone}};

std::string line_of(const Json& message) { return compact_text(message) + "\n"; }

bool has_command(Errand errand) {
  switch (errand) {
    case Errand::kUpdate:
    case Errand::kOffload:
    case Errand::kTransfer:
    case Errand::kResume:
      return true;
    case Errand::kRestore:
    case Errand::kStatus:
    case Errand::kStop:
      return false;
  }
  return false;
}

Json scope_json(const std::optional<Scope>& scope) {
  if (!scope) return {};
  Json tags = Json::array();
  for (const auto& named : kNamedTags) {
    if (scope->tags.at(static_cast<size_t>(named.value))) tags.push_back(named.name);
  }
  return {{"role", scope->role ? Json(name_of(kNamedRoles, *scope->role)) : Json()},
          {"tags", tags}};
}

Json command_json(const ClientRequest& request) {
  if (!has_command(request.errand)) return {};
  const auto& command = request.command;
  return {{"command", name_of(kCommands, command.command)},
          {"versions", command.versions},
          {"verify", name_of(kVerifies, command.verify)},
          {"train", command.train},
          {"scope", scope_json(command.scope)}};
}

std::optional<Scope> read_scope(const json* value) {
  if (value == nullptr) return std::nullopt;
  JsonFields fields(*value, "the request's scope");
  Scope scope;
  if (fields.find("role") != nullptr) scope.role = fields.choice("role", kNamedRoles);
  const auto& tags = fields.get("tags");
  if (!tags.is_array()) throw fields.is_not("tags", tags, "a list");
  scope.tags = {};
  for (const auto& tag : tags) {
    scope.tags.at(static_cast<size_t>(fields.choice_of("tags", tag, kNamedTags))) = true;
  }
  fields.finish();
  return scope;
}

CommandOptions read_command(const json& value, Errand errand) {
  JsonFields fields(value, "the request's command");
  CommandOptions command;
  command.command = fields.choice("command", kCommands);
  if (std::string_view(command_name(command.command)) != errand_name(errand)) {
    throw fields.is_not("command", value.at("command"), "of the errand");
  }
  command.versions = fields.count("versions");
  const bool several = command.command == Command::kUpdate;
  if (command.versions == 0 || (command.versions > 1 && !several)) {
    throw fields.is_not("versions", value.at("versions"), several ? "at least 1" : "1");
  }
  command.verify = fields.choice("verify", kVerifies);
  command.train = fields.boolean("train");
  command.scope = read_scope(fields.find("scope"));
  fields.finish();
  return command;
}

Rendering read_rendering(const json& value) {
  JsonFields fields(value, "the request's rendering");
  Rendering rendering;
  rendering.table = fields.boolean("table");
  rendering.unicode = fields.boolean("unicode");
  rendering.color = fields.boolean("color");
  if (const auto* columns = fields.find("columns")) {
    rendering.columns = fields.count("columns");
    if (rendering.columns < 1 || rendering.columns > kMostColumns) {
      throw fields.is_not("columns", *columns, "a width of text");
    }
  }
  rendering.json = fields.boolean("json");
  rendering.trace = fields.boolean("trace");
  fields.finish();
  return rendering;
}

Json rendering_json(const Rendering& rendering) {
  Json out = {{"table", rendering.table},
              {"unicode", rendering.unicode},
              {"color", rendering.color},
              {"json", rendering.json},
              {"trace", rendering.trace}};
  // Only what is unusual: jobs of older builds do not know it.
  if (rendering.columns != Rendering{}.columns) out["columns"] = rendering.columns;
  return out;
}

/// First of all, so that what another version says otherwise is not held against it.
void check_version(JsonFields& fields) {
  const auto version = fields.count("protocol");
  if (version == kProtocolVersion) return;
  throw request_error(
      fmt::format("the client speaks version {} of the protocol, this job version {}", version,
                  kProtocolVersion),
      "use the awex-colocate that the job was started with");
}

Event read_event(std::string_view line) {
  const auto parsed = parse_json(line, "the event");
  JsonFields fields(parsed, "the event");
  Event event;
  event.kind = fields.choice("event", kEvents);
  switch (event.kind) {
    case Event::Kind::kQueued:
      event.ahead = fields.count("ahead");
      break;
    case Event::Kind::kStarted:
      break;
    case Event::Kind::kPhase:
      event.phase = fields.text("phase");
      event.role = fields.text("role");
      event.tag = fields.text("tag");
      event.seconds = fields.number("seconds");
      event.bytes = fields.count("bytes");
      break;
    case Event::Kind::kDone:
      event.exit_code = fields.exit_code("exit_code");
      event.error = fields.error("error");
      event.table = fields.text("table");
      event.json = fields.text("json");
      event.trace = fields.text("trace");
      event.status = fields.text("status");
      break;
  }
  return event;
}

}  // namespace

const char* errand_name(Errand errand) { return name_of(kErrands, errand); }

std::string encode(const ClientRequest& request) {
  return line_of({{"protocol", kProtocolVersion},
                  {"errand", errand_name(request.errand)},
                  {"command", command_json(request)},
                  {"cancel_on_disconnect", request.cancel_on_disconnect},
                  {"rendering", rendering_json(request.rendering)}});
}

ClientRequest decode_request(std::string_view line) {
  const auto parsed = parse_json(line, "the request");
  JsonFields fields(parsed, "the request");
  check_version(fields);
  ClientRequest request;
  request.errand = fields.choice("errand", kErrands);
  if (has_command(request.errand)) {
    request.command = read_command(fields.get("command"), request.errand);
  } else if (const auto* command = fields.find("command")) {
    throw fields.is_not("command", *command, "null, as this errand has none");
  }
  request.cancel_on_disconnect = fields.boolean("cancel_on_disconnect");
  request.rendering = read_rendering(fields.get("rendering"));
  fields.finish();
  return request;
}

std::string encode(const Event& event) {
  Json message = {{"event", name_of(kEvents, event.kind)}};
  switch (event.kind) {
    case Event::Kind::kQueued:
      message["ahead"] = event.ahead;
      break;
    case Event::Kind::kStarted:
      break;
    case Event::Kind::kPhase:
      message["phase"] = event.phase;
      message["role"] = event.role;
      message["tag"] = text_or_null(event.tag);
      message["seconds"] = value_or_null(event.seconds);
      message["bytes"] = event.bytes;
      break;
    case Event::Kind::kDone:
      message["exit_code"] = static_cast<int>(event.exit_code);
      message["error"] = event.error ? error_json(*event.error) : Json();
      message["table"] = text_or_null(event.table);
      message["json"] = text_or_null(event.json);
      message["trace"] = text_or_null(event.trace);
      message["status"] = text_or_null(event.status);
      break;
  }
  return line_of(message);
}

Event decode_event(std::string_view line) {
  try {
    return read_event(line);
  } catch (const Error& error) {
    throw runtime_error(fmt::format("the job's answer cannot be understood: {}", error.what()),
                        "use the awex-colocate that the job was started with");
  }
}

}  // namespace awex
