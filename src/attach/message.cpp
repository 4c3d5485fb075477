#include "attach/message.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checked.hpp"
#include "base/error_json.hpp"
#include "base/hex.hpp"
#include "base/json_values.hpp"
#include "model/json_fields.hpp"

namespace awex::attach {
namespace {

using nlohmann::json;

constexpr size_t kLongestName = 31;

using FromEngine = ToRank::Kind;
constexpr std::array kFromEngine{
    Named<FromEngine>{"hello", FromEngine::kHello},
    Named<FromEngine>{"lend", FromEngine::kLend},
    Named<FromEngine>{"seal", FromEngine::kSeal},
    Named<FromEngine>{"ready", FromEngine::kReady},
    Named<FromEngine>{"withdraw", FromEngine::kWithdraw},
    Named<FromEngine>{"ack", FromEngine::kAck},
    Named<FromEngine>{"keep", FromEngine::kKeep},
    Named<FromEngine>{"book", FromEngine::kBook},
    Named<FromEngine>{"detach", FromEngine::kDetach},
};

using FromRank = ToEngine::Kind;
constexpr std::array kFromRank{
    Named<FromRank>{"welcome", FromRank::kWelcome},
    Named<FromRank>{"refused", FromRank::kRefused},
    Named<FromRank>{"sealed", FromRank::kSealed},
    Named<FromRank>{"map", FromRank::kMap},
    Named<FromRank>{"release", FromRank::kRelease},
    Named<FromRank>{"changed", FromRank::kChanged},
    Named<FromRank>{"copied", FromRank::kCopied},
    Named<FromRank>{"withdrawn", FromRank::kWithdrawn},
    Named<FromRank>{"over", FromRank::kOver},
    Named<FromRank>{"end", FromRank::kEnd},
};

constexpr std::array kWishes{Named<EngineWish>{"none", EngineWish::kNone},
                             Named<EngineWish>{"hand_over", EngineWish::kHandOver},
                             Named<EngineWish>{"take_back", EngineWish::kTakeBack},
                             Named<EngineWish>{"take_back_weights", EngineWish::kTakeBackWeights}};

constexpr std::array kOwn{Named<OwnWeights>{"none", OwnWeights::kNone},
                          Named<OwnWeights>{"stays", OwnWeights::kStays},
                          Named<OwnWeights>{"moves", OwnWeights::kMoves}};

Json optional_error(const std::optional<Error>& error) {
  return error ? error_json(*error) : Json();
}

/// As rows of a table: a layout may list many thousands.
Json parameters_json(const std::vector<Parameter>& parameters) {
  Json rows = Json::array();
  for (const auto& parameter : parameters) {
    rows.push_back({parameter.name, std::string(dtype_name(parameter.dtype)), parameter.rows,
                    parameter.cols, parameter.offset_bytes});
  }
  return rows;
}

Parameter read_parameter(const json& row, const std::string& what) {
  constexpr size_t kColumns = 5;
  const auto refuse = [&] {
    return request_error(
        fmt::format("{}: {} is no [name, dtype, rows, cols, offset]", what, shown(row)));
  };
  if (!row.is_array() || row.size() != kColumns || !row[0].is_string() || !row[1].is_string() ||
      !row[2].is_number_unsigned() || !row[3].is_number_unsigned() ||
      !row[4].is_number_unsigned()) {
    throw refuse();
  }
  const auto dtype = dtype_from_name(row[1].get<std::string>());
  if (!dtype) throw refuse();
  Parameter parameter{row[0].get<std::string>(), *dtype, row[2].get<uint64_t>(),
                      row[3].get<uint64_t>(), row[4].get<uint64_t>()};
  const auto elements = checked_mul(parameter.rows, parameter.cols, "a tensor");
  const auto bytes = checked_mul(elements, element_bytes(*dtype), "a tensor");
  static_cast<void>(checked_add(parameter.offset_bytes, bytes, "a tensor's end"));
  return parameter;
}

std::vector<Parameter> read_parameters(const json& rows, const std::string& what) {
  if (!rows.is_array()) throw request_error(fmt::format("{}: {} is no list", what, shown(rows)));
  std::vector<Parameter> parameters;
  parameters.reserve(rows.size());
  for (const auto& row : rows) parameters.push_back(read_parameter(row, what));
  return parameters;
}

template <class Value>
Json by_tag_json(const std::array<Value, 3>& values) {
  Json object = Json::object();
  for (const auto& tag : kNamedTags) object[tag.name] = values.at(static_cast<size_t>(tag.value));
  return object;
}

/// Calls read(fields, key) for each tag.
template <class Value, class Read>
std::array<Value, 3> read_by_tag(JsonFields& fields, const char* key, const Read& read) {
  std::array<Value, 3> values{};
  JsonFields tags(fields.get(key), fmt::format("the message's \"{}\"", key));
  for (const auto& tag : kNamedTags)
    values.at(static_cast<size_t>(tag.value)) = read(tags, tag.name);
  tags.finish();
  return values;
}

BytesByTag read_bytes(JsonFields& fields, const char* key) {
  return read_by_tag<uint64_t>(fields, key,
                               [](JsonFields& tags, const char* tag) { return tags.count(tag); });
}

/// First of all, so that what another version says otherwise is not held against it.
int read_version(JsonFields& fields, const char* who, const char* me) {
  const auto version = fields.count("protocol");
  if (version == kProtocolVersion) return kProtocolVersion;
  throw request_error(fmt::format("{} speaks version {} of the protocol, {} version {}", who,
                                  version, me, kProtocolVersion),
                      "the engine must load the libawex_colocate.so of the awex-colocate that the "
                      "job runs");
}

template <class Integer>
Integer read_number(JsonFields& fields, const char* key) {
  const auto number = fields.count(key);
  if (number > static_cast<uint64_t>(std::numeric_limits<Integer>::max())) {
    throw fields.is_not(key, fields.get(key), "a number that can be");
  }
  return static_cast<Integer>(number);
}

double read_seconds(JsonFields& fields, const char* key) {
  const auto seconds = fields.number(key);
  if (!seconds || !std::isfinite(*seconds) || *seconds < 0) {
    throw fields.is_not(key, fields.get(key), "a time");
  }
  return *seconds;
}

std::string read_name(JsonFields& fields, const char* key) {
  auto name = fields.text(key);
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (name.empty() || name.size() > kLongestName ||
      std::any_of(name.begin(), name.end(), is_control)) {
    throw fields.is_not(key, fields.get(key), "a name of 1 to 31 bytes");
  }
  return name;
}

uint64_t read_kept(JsonFields& fields) {
  const auto bytes = fields.count("kept_bytes");
  if (bytes > kMostKeptBytes) {
    throw fields.is_not("kept_bytes", fields.get("kept_bytes"), "at most 16 MiB");
  }
  return bytes;
}

void add_hello(Json& message, const ToRank& hello) {
  message["protocol"] = hello.protocol;
  message["build"] = hello.build;
  message["role"] = name_of(kNamedRoles, hello.role);
  message["name"] = hello.name;
  message["bytes"] = by_tag_json(hello.bytes);
  message["own_weights"] = name_of(kOwn, hello.own_weights);
}

void read_hello(JsonFields& fields, ToRank& hello) {
  hello.protocol = read_version(fields, "the engine's library", "this rank");
  hello.build = fields.text("build");
  hello.role = fields.choice("role", kNamedRoles);
  hello.name = read_name(fields, "name");
  hello.bytes = read_bytes(fields, "bytes");
  hello.own_weights = fields.choice("own_weights", kOwn);
}

/// As rows of a table: [address, bytes, offset, handle], the handle null where a descriptor comes.
Json blocks_json(const std::vector<LentBlock>& blocks) {
  Json rows = Json::array();
  for (const auto& block : blocks) {
    Json handle;
    if (!block.has_fd) handle = hex_of(block.ipc);
    rows.push_back({block.address, block.bytes, block.offset_bytes, handle});
  }
  return rows;
}

LentBlock read_block(const json& row) {
  constexpr size_t kColumns = 4;
  const auto refuse = [&] {
    return request_error(
        fmt::format("what is lent: {} is no [address, bytes, offset, handle or null]", shown(row)));
  };
  if (!row.is_array() || row.size() != kColumns || !row[0].is_number_unsigned() ||
      !row[1].is_number_unsigned() || !row[2].is_number_unsigned()) {
    throw refuse();
  }
  LentBlock block{
      row[0].get<uint64_t>(), row[1].get<uint64_t>(), row[2].get<uint64_t>(), row[3].is_null(), {}};
  if (block.bytes == 0) throw refuse();
  static_cast<void>(checked_add(block.address, block.bytes, "a block's end"));
  static_cast<void>(checked_add(block.offset_bytes, block.bytes, "a block's end"));
  if (block.has_fd) return block;
  const auto handle = row[3].is_string()
                          ? bytes_of_hex<IpcHandle().size()>(row[3].get<std::string>())
                          : std::nullopt;
  if (!handle) throw refuse();
  block.ipc = *handle;
  return block;
}

void add_lend(Json& message, const ToRank& lend) {
  message["begins"] = lend.begins;
  message["blocks"] = blocks_json(lend.blocks);
  message["tensors"] = parameters_json(lend.declared.at(static_cast<size_t>(Tag::kWeights)));
}

void read_lend(JsonFields& fields, ToRank& lend) {
  lend.begins = fields.boolean("begins");
  const auto& rows = fields.get("blocks");
  if (!rows.is_array()) throw fields.is_not("blocks", rows, "a list");
  for (const auto& row : rows) lend.blocks.push_back(read_block(row));
  lend.declared.at(static_cast<size_t>(Tag::kWeights)) =
      read_parameters(fields.get("tensors"), "the tensors that are lent");
}

void add_declared(Json& message, const ToRank& seal) {
  Json declared = Json::object();
  for (const auto& tag : kNamedTags) {
    declared[tag.name] = parameters_json(seal.declared.at(static_cast<size_t>(tag.value)));
  }
  message["declared"] = std::move(declared);
}

void read_declared(JsonFields& fields, ToRank& seal) {
  seal.declared = read_by_tag<std::vector<Parameter>>(
      fields, "declared", [](JsonFields& tags, const char* tag) {
        return read_parameters(tags.get(tag), fmt::format("what is declared of {}", tag));
      });
}

/// As rows of a table: [name, offset, bytes, element size, first index, digest].
Json runs_json(const std::vector<DigestedRun>& runs) {
  Json rows = Json::array();
  for (const auto& run : runs) {
    rows.push_back(
        {run.name, run.offset_bytes, run.bytes, run.element_size, run.first_index, run.digest});
  }
  return rows;
}

/// Of each chunk; null where that is not known.
Json holds_json(const std::vector<ChunkDigests>& holds) {
  Json chunks = Json::array();
  for (const auto& runs : holds) {
    chunks.push_back(runs ? runs_json(*runs) : Json());
  }
  return chunks;
}

DigestedRun read_run(const json& row) {
  constexpr size_t kColumns = 6;
  const auto is_number = [](const json& value) { return value.is_number_unsigned(); };
  const bool is_run = row.is_array() && row.size() == kColumns && row[0].is_string() &&
                      std::all_of(row.begin() + 1, row.end(), is_number);
  const uint64_t element = is_run ? row[3].get<uint64_t>() : 0;
  const bool is_size = element == 1 || element == 2 || element == 4;
  if (!is_size || row[2].get<uint64_t>() % element != 0) {
    throw request_error(fmt::format(
        "what was copied: {} is no [name, offset, bytes, element size, first index, digest]",
        shown(row)));
  }
  DigestedRun run{row[0].get<std::string>(),      row[1].get<uint64_t>(), row[2].get<uint64_t>(),
                  static_cast<uint32_t>(element), row[4].get<uint64_t>(), row[5].get<uint64_t>()};
  static_cast<void>(checked_add(run.offset_bytes, run.bytes, "a run's end"));
  return run;
}

void read_copied(JsonFields& fields, ToEngine& copied) {
  copied.tag = fields.choice("tag", kNamedTags);
  copied.first = fields.count("first");
  const auto& chunks = fields.get("holds");
  if (!chunks.is_array()) throw fields.is_not("holds", chunks, "a list");
  for (const auto& rows : chunks) {
    auto& runs = copied.holds.emplace_back();
    if (rows.is_null()) continue;
    if (!rows.is_array()) throw fields.is_not("holds", rows, "a list of lists");
    runs.emplace();
    for (const auto& row : rows) runs->push_back(read_run(row));
  }
}

void add_welcome(Json& message, const ToEngine& welcome) {
  message["protocol"] = welcome.protocol;
  message["rank"] = welcome.rank;
  message["role_rank"] = welcome.role_rank;
  message["host"] = welcome.host;
  message["model"] = welcome.model;
  message["layout"] = welcome.layout;
  message["backend"] = welcome.backend;
  message["reattached"] = welcome.reattached;
  message["version"] = welcome.version;
  message["kept_bytes"] = welcome.kept_bytes;
  message["places"] = parameters_json(welcome.places);
  message["bytes"] = by_tag_json(welcome.bytes);
  message["chunk_bytes"] = by_tag_json(welcome.chunk_bytes);
  message["mapped"] = by_tag_json(welcome.mapped);
  message["away"] = by_tag_json(welcome.away);
  message["silence_s"] = welcome.silence_s;
  message["takes_memory"] = welcome.takes_memory;
}

void read_welcome(JsonFields& fields, ToEngine& welcome) {
  welcome.protocol = read_version(fields, "the rank", "this library");
  welcome.rank = read_number<int>(fields, "rank");
  welcome.role_rank = read_number<uint32_t>(fields, "role_rank");
  welcome.host = fields.text("host");
  welcome.model = fields.text("model");
  welcome.layout = fields.text("layout");
  welcome.backend = fields.text("backend");
  welcome.reattached = fields.boolean("reattached");
  welcome.version = fields.count("version");
  welcome.kept_bytes = read_kept(fields);
  welcome.places = read_parameters(fields.get("places"), "the layout's tensors");
  welcome.bytes = read_bytes(fields, "bytes");
  welcome.chunk_bytes = read_bytes(fields, "chunk_bytes");
  const auto read_flag = [](JsonFields& tags, const char* tag) { return tags.boolean(tag); };
  welcome.mapped = read_by_tag<bool>(fields, "mapped", read_flag);
  welcome.away = read_by_tag<bool>(fields, "away", read_flag);
  welcome.silence_s = read_seconds(fields, "silence_s");
  welcome.takes_memory = fields.boolean("takes_memory");
}

Error read_why(JsonFields& fields) {
  auto error = fields.error("error");
  if (!error || error->code() == ExitCode::kOk) {
    throw fields.is_not("error", fields.get("error"), "an error");
  }
  return *error;
}

}  // namespace

std::string encode(const ToRank& message) {
  using Kind = ToRank::Kind;
  Json json = {{"message", name_of(kFromEngine, message.kind)}};
  switch (message.kind) {
    case Kind::kHello:
      add_hello(json, message);
      break;
    case Kind::kLend:
      add_lend(json, message);
      break;
    case Kind::kSeal:
      add_declared(json, message);
      break;
    case Kind::kReady:
      json["wish"] = name_of(kWishes, message.wish);
      json["newer_than"] = message.newer_than;
      break;
    case Kind::kAck:
      json["error"] = optional_error(message.error);
      break;
    case Kind::kKeep:
      json["kept_bytes"] = message.kept_bytes;
      break;
    case Kind::kBook:
      json["name"] = message.name;
      json["booked_bytes"] = message.booked_bytes;
      break;
    case Kind::kWithdraw:
    case Kind::kDetach:
      break;
  }
  return compact_text(json);
}

ToRank decode_to_rank(std::string_view text) {
  using Kind = ToRank::Kind;
  const auto parsed = parse_json(text, "the engine's message");
  JsonFields fields(parsed, "the engine's message");
  ToRank message;
  message.kind = fields.choice("message", kFromEngine);
  switch (message.kind) {
    case Kind::kHello:
      read_hello(fields, message);
      break;
    case Kind::kLend:
      read_lend(fields, message);
      break;
    case Kind::kSeal:
      read_declared(fields, message);
      break;
    case Kind::kReady:
      message.wish = fields.choice("wish", kWishes);
      message.newer_than = fields.count("newer_than");
      break;
    case Kind::kAck:
      if (fields.find("error") != nullptr) message.error = read_why(fields);
      break;
    case Kind::kKeep:
      message.kept_bytes = read_kept(fields);
      break;
    case Kind::kBook:
      message.name = read_name(fields, "name");
      message.booked_bytes = fields.count("booked_bytes");
      break;
    case Kind::kWithdraw:
    case Kind::kDetach:
      break;
  }
  fields.finish();
  return message;
}

std::string encode(const ToEngine& message) {
  using Kind = ToEngine::Kind;
  Json json = {{"message", name_of(kFromRank, message.kind)}};
  switch (message.kind) {
    case Kind::kWelcome:
      add_welcome(json, message);
      break;
    case Kind::kMap:
      json["tag"] = name_of(kNamedTags, message.tag);
      json["first"] = message.first;
      json["last"] = message.last;
      json["has_content"] = message.has_content;
      break;
    case Kind::kRelease:
      json["tag"] = name_of(kNamedTags, message.tag);
      break;
    case Kind::kChanged:
      json["tag"] = name_of(kNamedTags, message.tag);
      json["version"] = message.version;
      break;
    case Kind::kCopied:
      json["tag"] = name_of(kNamedTags, message.tag);
      json["first"] = message.first;
      json["holds"] = holds_json(message.holds);
      break;
    case Kind::kOver:
      json["version"] = message.version;
      json["gave"] = message.gave;
      json["brought"] = message.brought;
      json["error"] = optional_error(message.error);
      break;
    case Kind::kRefused:
    case Kind::kEnd:
      json["error"] = optional_error(message.error);
      break;
    case Kind::kSealed:
    case Kind::kWithdrawn:
      break;
  }
  return compact_text(json);
}

ToEngine decode_to_engine(std::string_view text) {
  using Kind = ToEngine::Kind;
  const auto parsed = parse_json(text, "the rank's message");
  JsonFields fields(parsed, "the rank's message");
  ToEngine message;
  message.kind = fields.choice("message", kFromRank);
  switch (message.kind) {
    case Kind::kWelcome:
      read_welcome(fields, message);
      break;
    case Kind::kMap:
      message.tag = fields.choice("tag", kNamedTags);
      message.first = fields.count("first");
      message.last = fields.boolean("last");
      message.has_content = fields.boolean("has_content");
      break;
    case Kind::kRelease:
      message.tag = fields.choice("tag", kNamedTags);
      break;
    case Kind::kChanged:
      message.tag = fields.choice("tag", kNamedTags);
      message.version = fields.count("version");
      break;
    case Kind::kCopied:
      read_copied(fields, message);
      break;
    case Kind::kOver:
      message.version = fields.count("version");
      message.gave = fields.boolean("gave");
      message.brought = fields.boolean("brought");
      if (fields.find("error") != nullptr) message.error = read_why(fields);
      break;
    case Kind::kRefused:
      message.error = read_why(fields);
      break;
    case Kind::kEnd:
      if (fields.find("error") != nullptr) message.error = read_why(fields);
      break;
    case Kind::kSealed:
    case Kind::kWithdrawn:
      break;
  }
  fields.finish();
  return message;
}

}  // namespace awex::attach
