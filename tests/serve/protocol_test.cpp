#include "serve/protocol.hpp"

#include <doctest/doctest.h>

#include <optional>
#include <string>

namespace {

using namespace awex;

std::string without_newline(const std::string& line) {
  REQUIRE(line.find('\n') == line.size() - 1);
  return line.substr(0, line.size() - 1);
}

ClientRequest sent(const ClientRequest& request) {
  return decode_request(without_newline(encode(request)));
}

Event sent(const Event& event) { return decode_event(without_newline(encode(event))); }

/// What a line is refused for; it must be a request error.
std::string refusal(const std::string& line) {
  try {
    (void)decode_request(line);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    return error.what();
  }
  return "nothing";
}

/// A valid line, with one part replaced by another.
std::string changed(const std::string& part, const std::string& by) {
  ClientRequest request;
  request.errand = Errand::kOffload;
  request.command.command = Command::kOffload;
  auto line = without_newline(encode(request));
  const auto at = line.find(part);
  REQUIRE(at != std::string::npos);
  return line.replace(at, part.size(), by);
}

TEST_CASE("a request arrives as it was sent") {
  ClientRequest request;
  request.errand = Errand::kResume;
  request.command.command = Command::kResume;
  request.command.verify = Verify::kFull;
  request.command.train = false;
  request.command.scope = Scope{Role::kInference, {true, false, true}};
  request.cancel_on_disconnect = true;
  request.rendering = {false, true, true, 132, true, true};
  const auto got = sent(request);
  CHECK(got.errand == Errand::kResume);
  CHECK(got.command.command == Command::kResume);
  CHECK(got.command.versions == 1);
  CHECK(got.command.verify == Verify::kFull);
  CHECK_FALSE(got.command.train);
  CHECK(got.command.scope == request.command.scope);
  CHECK(got.cancel_on_disconnect);
  CHECK_FALSE(got.rendering.table);
  CHECK(got.rendering.unicode);
  CHECK(got.rendering.color);
  CHECK(got.rendering.json);
  CHECK(got.rendering.trace);
  CHECK(got.rendering.columns == 132);
}

TEST_CASE("a width that is usual is not sent, so that older jobs take the request") {
  CHECK(encode(ClientRequest{}).find("columns") == std::string::npos);
  CHECK(sent(ClientRequest{}).rendering.columns == 80);
  ClientRequest request;
  request.rendering.columns = 132;
  for (const char* wrong : {"0", "501", "-1", "1.5", "\"80\""}) {
    CAPTURE(wrong);
    auto line = encode(request);
    line.pop_back();
    line.replace(line.find("132"), 3, wrong);
    CHECK_THROWS_AS((void)decode_request(line), Error);
  }
}

TEST_CASE("each errand has a name of its own, and so has each of its commands") {
  for (const auto errand : {Errand::kStatus, Errand::kStop, Errand::kRestore}) {
    ClientRequest request;
    request.errand = errand;
    CHECK(sent(request).errand == errand);
  }
  for (const auto command : {Command::kUpdate, Command::kHandOver}) {
    ClientRequest request;
    request.errand = Errand::kUpdate;
    request.command.command = command;
    CHECK(sent(request).command.command == command);
  }
  CHECK(std::string(errand_name(Errand::kRestore)) == "restore");
}

TEST_CASE("what is no request is refused, and why is said") {
  CHECK(refusal("") == "the request: not valid JSON at byte 1 of 0");
  CHECK(refusal("[]") == "the request: [] is no object");
  CHECK(refusal(std::string("{}\0", 3)).find("a byte of value 0") != std::string::npos);
  CHECK(refusal("{}") == "the request: \"protocol\" is missing");
  CHECK(refusal("GET / HTTP/1.1").find("not valid JSON") != std::string::npos);
  CHECK(refusal(std::string(5000, '[')).find("nested deeper") != std::string::npos);
  CHECK(refusal(changed("\"protocol\":1", "\"protocol\":2,\"news\":0")) ==
        "the client speaks version 2 of the protocol, this job version 1");
  CHECK(refusal(changed("\"protocol\":1", "\"protocol\":\"1\"")).find("not a count") !=
        std::string::npos);
  CHECK(refusal(changed("\"protocol\":1", "\"protocol\":1,\"protocol\":1")) ==
        "the request: the key \"protocol\" appears twice");
  CHECK(refusal(changed("\"errand\":\"offload\"", "\"errand\":\"ofload\"")) ==
        "the request: \"errand\" is \"ofload\"");
  CHECK(refusal(changed("\"errand\":\"offload\"", "\"errand\":\"update\"")) ==
        "the request's command: \"command\" is \"offload\", not of the errand");
  CHECK(refusal(changed("\"errand\":\"offload\"", "\"errand\":\"stop\"")).find("has none") !=
        std::string::npos);
  CHECK(refusal(changed("\"versions\":1", "\"versions\":0")).find("not 1") != std::string::npos);
  CHECK(refusal(changed("\"versions\":1", "\"versions\":2")).find("not 1") != std::string::npos);
  CHECK(refusal(changed("\"versions\":1", "\"versions\":-1")).find("not a count") !=
        std::string::npos);
  CHECK(refusal(changed("\"versions\":1", "\"versions\":1.0")).find("not a count") !=
        std::string::npos);
  CHECK(refusal(changed("\"versions\":1", "\"versions\":1e999")).find("out of range") !=
        std::string::npos);
  CHECK(refusal(changed("\"train\":true", "\"train\":1")).find("not true or false") !=
        std::string::npos);
  CHECK(refusal(changed("\"train\":true", "\"trian\":true")) ==
        "the request's command: \"train\" is missing");
  CHECK(refusal(changed("\"train\":true", "\"train\":true,\"steps\":1")) ==
        "the request's command: unknown key \"steps\"");
  CHECK(refusal(changed("\"scope\":null", "\"scope\":{\"tags\":[\"moments\"]}")) ==
        "the request's scope: \"tags\" is \"moments\"");
  CHECK(refusal(changed("\"scope\":null", "\"scope\":{\"tags\":7}")).find("not a list") !=
        std::string::npos);
}

TEST_CASE("an event arrives as it was sent, whatever its texts hold") {
  Event phase;
  phase.kind = Event::Kind::kPhase;
  phase.phase = "transfer";
  phase.role = "all";
  phase.tag = "weights";
  phase.seconds = 0.25;
  phase.bytes = uint64_t{1} << 60;
  const auto got = sent(phase);
  CHECK(got.kind == Event::Kind::kPhase);
  CHECK(got.phase == "transfer");
  CHECK(got.role == "all");
  CHECK(got.tag == "weights");
  CHECK(got.seconds == 0.25);
  CHECK(got.bytes == uint64_t{1} << 60);

  Event queued;
  queued.kind = Event::Kind::kQueued;
  queued.ahead = 63;
  CHECK(sent(queued).ahead == 63);
  Event started;
  started.kind = Event::Kind::kStarted;
  CHECK(sent(started).kind == Event::Kind::kStarted);

  Event done;
  done.exit_code = ExitCode::kPeerLost;
  Error error(ExitCode::kPeerLost, "rank 3 \"is\" gone", "look\nat its log");
  error.context() = {3, "a", "gpu 1", "inference", "transfer", "weights", "model.norm"};
  done.error = error;
  done.table = "line\nline\n";
  done.json = "{\"a\": 1}\n";
  done.trace = std::string("bytes \xff of no text");
  const auto end = sent(done);
  CHECK(end.kind == Event::Kind::kDone);
  CHECK(end.exit_code == ExitCode::kPeerLost);
  REQUIRE(end.error);
  CHECK(end.error->code() == ExitCode::kPeerLost);
  CHECK(std::string(end.error->what()) == "rank 3 \"is\" gone");
  CHECK(end.error->hint() == "look\nat its log");
  CHECK(end.error->context().rank == 3);
  CHECK(end.error->context().host == "a");
  CHECK(end.error->context().gpu == "gpu 1");
  CHECK(end.error->context().role == "inference");
  CHECK(end.error->context().phase == "transfer");
  CHECK(end.error->context().tag == "weights");
  CHECK(end.error->context().tensor == "model.norm");
  CHECK(end.table == "line\nline\n");
  CHECK(end.json == "{\"a\": 1}\n");
  CHECK(end.trace == "bytes \xef\xbf\xbd of no text");
  CHECK(end.status.empty());
}

TEST_CASE("what is no event is another program's") {
  for (const char* line :
       {"", "SSH-2.0", "{}", "{\"event\":\"gone\"}", "{\"event\":\"queued\"}",
        "{\"event\":\"done\",\"exit_code\":6}", "{\"event\":\"done\",\"exit_code\":1,\"error\":[]}",
        "{\"event\":\"done\",\"exit_code\":1,\"error\":{\"code\":1,\"rank\":-1}}"}) {
    CAPTURE(line);
    std::optional<Error> refusal;
    try {
      (void)decode_event(line);
    } catch (const Error& error) {
      refusal = error;
    }
    REQUIRE(refusal);
    CHECK(refusal->code() == ExitCode::kRuntime);
  }
}

}  // namespace
