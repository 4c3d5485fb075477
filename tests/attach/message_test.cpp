#include "attach/message.hpp"

#include <doctest/doctest.h>

#include <string>

#include "support/failure_of.hpp"

namespace {

using namespace awex;
using namespace awex::attach;

ToRank sent(const ToRank& message) { return decode_to_rank(encode(message)); }
ToEngine sent(const ToEngine& message) { return decode_to_engine(encode(message)); }

bool same(const std::vector<Parameter>& a, const std::vector<Parameter>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Parameter& x, const Parameter& y) {
                      return x.name == y.name && x.dtype == y.dtype && x.rows == y.rows &&
                             x.cols == y.cols && x.offset_bytes == y.offset_bytes;
                    });
}

const std::vector<Parameter> kParameters = {
    {"a.weight", DType::kBf16, 3, 5, 256},
    {"gr\xc3\xb6\xc3\x9f\x65 \"quoted\"\n", DType::kF8E4M3, 1, uint64_t{1} << 40, 1},
    {"", DType::kF32, 0, 0, 0}};

/// Every byte of its handle another one.
const LentBlock kBlock = [] {
  LentBlock block{uint64_t{7} << 40, 2 << 20, 512, false, {}};
  for (size_t i = 0; i < block.ipc.size(); ++i) block.ipc.at(i) = static_cast<uint8_t>(4 * i + 3);
  return block;
}();

ToRank hello() {
  ToRank message;
  message.kind = ToRank::Kind::kHello;
  message.build = "0.1.0+gabc";
  message.role = Role::kInference;
  message.name = "vllm 0.32.0";
  message.bytes = {1, uint64_t{1} << 60, 3};
  return message;
}

ToEngine welcome() {
  ToEngine message;
  message.kind = ToEngine::Kind::kWelcome;
  message.rank = 7;
  message.role_rank = 3;
  message.host = "node";
  message.model = "tiny";
  message.layout = "vllm:tp=2";
  message.backend = "host";
  message.reattached = true;
  message.version = 12;
  message.kept_bytes = kMostKeptBytes;
  message.places = kParameters;
  message.bytes = {4, 5, 6};
  message.chunk_bytes = {7, 8, 9};
  message.mapped = {true, false, true};
  message.away = {false, true, false};
  message.silence_s = 0.5;
  message.takes_memory = false;
  return message;
}

Error failure() {
  Error error(ExitCode::kMismatch, "bytes \xff differ", "look");
  error.context().rank = 2;
  error.context().tensor = "a";
  return error;
}

TEST_CASE("what an engine says arrives as it was sent") {
  const auto got = sent(hello());
  CHECK(got.kind == ToRank::Kind::kHello);
  CHECK(got.protocol == kProtocolVersion);
  CHECK(got.build == "0.1.0+gabc");
  CHECK(got.role == Role::kInference);
  CHECK(got.name == "vllm 0.32.0");
  CHECK(got.bytes == hello().bytes);
  for (const auto own : {OwnWeights::kNone, OwnWeights::kStays, OwnWeights::kMoves}) {
    ToRank owner = hello();
    owner.own_weights = own;
    CHECK(sent(owner).own_weights == own);
  }

  ToRank lend;
  lend.kind = ToRank::Kind::kLend;
  lend.begins = false;
  lend.blocks = {kBlock, {1, UINT64_MAX - 1, 0, true, {}}};
  lend.declared[0] = kParameters;
  CHECK_FALSE(sent(lend).begins);
  CHECK(sent(lend).blocks == lend.blocks);
  CHECK(same(sent(lend).declared[0], kParameters));

  ToRank book;
  book.kind = ToRank::Kind::kBook;
  book.name = "CUDA graphs";
  book.booked_bytes = 5;
  CHECK(sent(book).name == "CUDA graphs");
  CHECK(sent(book).booked_bytes == 5);

  ToRank seal;
  seal.kind = ToRank::Kind::kSeal;
  seal.declared = {kParameters, std::vector<Parameter>{}, {kParameters[0]}};
  for (size_t tag = 0; tag < 3; ++tag) CHECK(same(sent(seal).declared[tag], seal.declared[tag]));

  for (const auto wish : {EngineWish::kNone, EngineWish::kHandOver, EngineWish::kTakeBack}) {
    ToRank ready;
    ready.kind = ToRank::Kind::kReady;
    ready.wish = wish;
    ready.newer_than = 9;
    CHECK(sent(ready).kind == ToRank::Kind::kReady);
    CHECK(sent(ready).wish == wish);
    CHECK(sent(ready).newer_than == 9);
  }
  ToRank keep;
  keep.kind = ToRank::Kind::kKeep;
  keep.kept_bytes = 77;
  CHECK(sent(keep).kept_bytes == 77);
  for (const auto kind : {ToRank::Kind::kWithdraw, ToRank::Kind::kDetach, ToRank::Kind::kAck}) {
    ToRank message;
    message.kind = kind;
    CHECK(sent(message).kind == kind);
    CHECK_FALSE(sent(message).error);
  }
}

TEST_CASE("what a rank says arrives as it was sent") {
  const auto got = sent(welcome());
  const auto said = welcome();
  CHECK(got.kind == ToEngine::Kind::kWelcome);
  CHECK(got.rank == 7);
  CHECK(got.role_rank == 3);
  CHECK(got.host == "node");
  CHECK(got.model == "tiny");
  CHECK(got.layout == "vllm:tp=2");
  CHECK(got.backend == "host");
  CHECK(got.reattached);
  CHECK(got.version == 12);
  CHECK(got.kept_bytes == kMostKeptBytes);
  CHECK(same(got.places, said.places));
  CHECK(got.bytes == said.bytes);
  CHECK(got.chunk_bytes == said.chunk_bytes);
  CHECK(got.mapped == said.mapped);
  CHECK(got.away == said.away);
  CHECK(got.silence_s == 0.5);
  CHECK_FALSE(got.takes_memory);

  for (const auto tag : {Tag::kWeights, Tag::kOptimizer, Tag::kKvCache}) {
    ToEngine map;
    map.kind = ToEngine::Kind::kMap;
    map.tag = tag;
    map.first = 128;
    map.last = false;
    map.has_content = false;
    CHECK(sent(map).tag == tag);
    CHECK(sent(map).first == 128);
    CHECK_FALSE(sent(map).last);
    CHECK_FALSE(sent(map).has_content);
    ToEngine release;
    release.kind = ToEngine::Kind::kRelease;
    release.tag = tag;
    CHECK(sent(release).tag == tag);
  }
  ToEngine copied;
  copied.kind = ToEngine::Kind::kCopied;
  copied.tag = Tag::kOptimizer;
  copied.first = 128;
  copied.holds = {
      std::nullopt,
      std::vector<DigestedRun>{{"m \"of\" a", 4096, 12, 4, 7, UINT64_MAX}, {"", 0, 0, 1, 0, 0}},
      std::vector<DigestedRun>()};
  CHECK(sent(copied).tag == Tag::kOptimizer);
  CHECK(sent(copied).first == 128);
  const auto chunks = sent(copied).holds;
  REQUIRE(chunks.size() == 3);
  CHECK_FALSE(chunks[0]);
  REQUIRE(chunks[1]);
  REQUIRE(chunks[1]->size() == 2);
  const auto& run = chunks[1]->front();
  CHECK(run.name == "m \"of\" a");
  CHECK(run.offset_bytes == 4096);
  CHECK(run.bytes == 12);
  CHECK(run.element_size == 4);
  CHECK(run.first_index == 7);
  CHECK(run.digest == UINT64_MAX);
  REQUIRE(chunks[2]);
  CHECK(chunks[2]->empty());
  ToEngine changed;
  changed.kind = ToEngine::Kind::kChanged;
  changed.version = 4;
  CHECK(sent(changed).version == 4);
  ToEngine over;
  over.kind = ToEngine::Kind::kOver;
  over.version = 5;
  over.gave = true;
  CHECK(sent(over).version == 5);
  CHECK(sent(over).gave);
  CHECK_FALSE(sent(over).brought);
  CHECK_FALSE(sent(over).error);
  for (const auto kind :
       {ToEngine::Kind::kSealed, ToEngine::Kind::kWithdrawn, ToEngine::Kind::kEnd}) {
    ToEngine message;
    message.kind = kind;
    CHECK(sent(message).kind == kind);
  }
}

TEST_CASE("an error arrives with its context, whatever bytes its text has") {
  const auto check = [](const std::optional<Error>& got) {
    REQUIRE(got);
    CHECK(got->code() == ExitCode::kMismatch);
    CHECK(std::string(got->what()) == "bytes \xef\xbf\xbd differ");
    CHECK(got->hint() == "look");
    CHECK(got->context().rank == 2);
    CHECK(got->context().tensor == "a");
  };
  ToRank ack;
  ack.kind = ToRank::Kind::kAck;
  ack.error = failure();
  check(sent(ack).error);
  for (const auto kind : {ToEngine::Kind::kRefused, ToEngine::Kind::kOver, ToEngine::Kind::kEnd}) {
    ToEngine message;
    message.kind = kind;
    message.error = failure();
    check(sent(message).error);
  }
}

/// A text with one part replaced by another.
std::string changed(std::string text, const std::string& part, const std::string& by) {
  const auto at = text.find(part);
  REQUIRE(at != std::string::npos);
  return text.replace(at, part.size(), by);
}

template <class Decode>
void check_refusal(const Decode& decode, const std::string& text, const std::string& why) {
  CAPTURE(text);
  const auto failure = test::failure_of([&] { static_cast<void>(decode(text)); });
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kRequest);
  CAPTURE(failure->what());
  CHECK(std::string(failure->what()).find(why) != std::string::npos);
}

TEST_CASE("what no engine says is refused, and why is said") {
  const auto refuse = [](const std::string& text, const std::string& why) {
    check_refusal(decode_to_rank, text, why);
  };
  const auto said = encode(hello());
  refuse("", "not valid JSON");
  refuse("[]", "is no object");
  refuse(std::string("{}\0", 3), "a byte of value 0");
  refuse(std::string(100000, '['), "nested deeper");
  refuse("{}", "\"message\" is missing");
  refuse(R"({"message":"welcome"})", "\"message\" is \"welcome\"");
  refuse(R"({"message":"ack","error":{"code":0}})", "not an error");
  refuse(R"({"message":"ack","error":{"code":6}})", "not an exit code");
  refuse(R"({"message":"ack","error":"x"})", "no object");
  refuse(R"({"message":"detach","news":1})", "unknown key \"news\"");
  refuse(R"({"message":"keep","kept_bytes":16777217})", "not at most 16 MiB");
  refuse(R"({"message":"ready","wish":"rest","newer_than":0})", "\"wish\" is \"rest\"");
  refuse(R"({"message":"ready","wish":"none","newer_than":-1})", "not a count");
  refuse(changed(said, "\"protocol\":4", "\"protocol\":5,\"news\":0"),
         "the engine's library speaks version 5 of the protocol, this rank version 4");
  refuse(changed(said, "\"inference\"", "\"inferrence\""), "\"role\" is \"inferrence\"");
  refuse(changed(said, "vllm 0.32.0", ""), "not a name of 1 to 31 bytes");
  refuse(changed(said, "vllm 0.32.0", std::string(32, 'x')), "not a name of 1 to 31 bytes");
  refuse(changed(said, "vllm 0.32.0", "\\u001b[2J"), "not a name of 1 to 31 bytes");
  refuse(changed(said, "\"optimizer\":", "\"moments\":"), "\"optimizer\" is missing");
  refuse(changed(said, "\"weights\":1", "\"weights\":1.5"), "not a count");
  refuse(changed(said, "\"weights\":1", "\"weights\":1,\"more\":1"), "unknown key \"more\"");
  refuse(changed(said, "\"bytes\":{", "\"bytes\":[{"), "not valid JSON");
}

TEST_CASE("tensors that cannot be are refused") {
  ToRank seal;
  seal.kind = ToRank::Kind::kSeal;
  seal.declared[1] = {{"m", DType::kF32, 2, 3, 4}};
  const auto said = encode(seal);
  const auto refuse = [&](const std::string& row, const std::string& why) {
    check_refusal(decode_to_rank, changed(said, R"(["m","F32",2,3,4])", row), why);
  };
  refuse("7", "what is declared of optimizer: 7 is no [name, dtype, rows, cols, offset]");
  refuse("[]", "is no [name");
  refuse(R"(["m","F32",2,3])", "is no [name");
  refuse(R"(["m","F32",2,3,4,5])", "is no [name");
  refuse(R"([1,"F32",2,3,4])", "is no [name");
  refuse(R"(["m","F33",2,3,4])", "is no [name");
  refuse(R"(["m","F32",-2,3,4])", "is no [name");
  refuse(R"(["m","F32",2,3.5,4])", "is no [name");
  refuse(R"(["m","F32",4294967296,4294967296,0])", "does not fit 64 bits");
  refuse(R"(["m","F32",4294967296,1073741824,0])", "does not fit 64 bits");
  refuse(R"(["m","F32",1,1,18446744073709551613])", "does not fit 64 bits");
  check_refusal(decode_to_rank, changed(said, R"([["m","F32",2,3,4]])", "{}"), "is no list");
}

TEST_CASE("blocks that cannot be are refused") {
  ToRank lend;
  lend.kind = ToRank::Kind::kLend;
  lend.blocks = {{16, 32, 64, true, {}}};
  const auto said = encode(lend);
  const auto refuse = [&](const std::string& row, const std::string& why) {
    check_refusal(decode_to_rank, changed(said, "[16,32,64,null]", row), why);
  };
  const std::string handle(128, 'a');
  CHECK(decode_to_rank(changed(said, "null", '"' + handle + '"')).blocks[0].ipc[63] == 0xAA);
  refuse("7", "what is lent: 7 is no [address, bytes, offset, handle or null]");
  refuse("[16,32,64]", "is no [address");
  refuse("[16,32,64,7]", "is no [address");
  refuse("[-16,32,64,null]", "is no [address");
  refuse("[16,0,64,null]", "is no [address");
  refuse("[16,32,64,\"" + handle.substr(1) + "\"]", "is no [address");
  refuse("[16,32,64,\"" + handle.substr(1) + "g\"]", "is no [address");
  refuse("[18446744073709551610,32,64,null]", "does not fit 64 bits");
  refuse("[16,32,18446744073709551610,null]", "does not fit 64 bits");
  check_refusal(decode_to_rank, changed(said, "[[16,32,64,null]]", "{}"), "not a list");
}

TEST_CASE("runs that cannot be are refused") {
  ToEngine copied;
  copied.kind = ToEngine::Kind::kCopied;
  copied.holds = {std::vector<DigestedRun>{{"", 0, 0, 1, 0, 0}}};
  const auto said = encode(copied);
  const auto refuse = [&](const std::string& row, const std::string& why) {
    check_refusal(decode_to_engine, changed(said, "[\"\",0,0,1,0,0]", row), why);
  };
  refuse("7", "what was copied: 7 is no [name, offset, bytes, element size, first index, digest]");
  refuse("[\"\",0,0,1,0]", "is no [name");
  refuse("[\"\",0,0,3,0,0]", "is no [name");
  refuse("[\"\",-1,0,1,0,0]", "is no [name");
  refuse("[\"\",0,6,4,0,0]", "is no [name");
  refuse("[\"\",18446744073709551615,1,1,0,0]", "does not fit 64 bits");
  const auto refuse_chunk = [&](const std::string& chunk) {
    check_refusal(decode_to_engine, changed(said, "[[\"\",0,0,1,0,0]]", chunk), "a list of lists");
  };
  refuse_chunk("7");
  refuse_chunk("{}");
}

TEST_CASE("what no rank says is refused, and why is said") {
  const auto refuse = [](const std::string& text, const std::string& why) {
    check_refusal(decode_to_engine, text, why);
  };
  const auto said = encode(welcome());
  refuse(R"({"message":"hello"})", "\"message\" is \"hello\"");
  refuse(R"({"message":"refused"})", "\"error\" is missing");
  refuse(R"({"message":"sealed","x":1})", "unknown key \"x\"");
  refuse(R"({"message":"map","tag":"moments"})", "\"tag\" is \"moments\"");
  refuse(R"({"message":"map","tag":"weights","first":0,"last":1})", "not true or false");
  refuse(R"({"message":"over","version":1,"gave":true})", "\"brought\" is missing");
  refuse(changed(said, "\"protocol\":4", "\"protocol\":0"),
         "the rank speaks version 0 of the protocol, this library version 4");
  refuse(changed(said, "\"rank\":7", "\"rank\":2147483648"), "not a number that can be");
  refuse(changed(said, "\"role_rank\":3", "\"role_rank\":4294967296"), "not a number that can be");
  refuse(changed(said, "\"silence_s\":0.5", "\"silence_s\":-1"), "not a time");
  refuse(changed(said, "\"silence_s\":0.5", "\"silence_s\":null"), "is missing");
  refuse(changed(said, "\"silence_s\":0.5", "\"silence_s\":1e999"), "out of range");
  refuse(changed(said, "\"mapped\":{\"weights\":true", "\"mapped\":{\"weights\":1"),
         "not true or false");
  refuse(changed(said, "\"kept_bytes\":16777216", "\"kept_bytes\":16777217"), "at most 16 MiB");
}

}  // namespace
