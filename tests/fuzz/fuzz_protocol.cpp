// Whatever a client or a job says, it is refused, or understood and the same when it is said again.
// The first byte of an input says who speaks: an even one a client, an odd one a job.
#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz/untrusted.hpp"
#include "serve/protocol.hpp"

namespace {

using namespace awex;

void check_request(std::string_view line) {
  const auto request = decode_request(line);
  const auto said = encode(request);
  fuzz::require(said.size() <= kLongestRequest, "a request is not too long for a job");
  fuzz::require(said.find('\n') == said.size() - 1, "a request is one line");
  const auto again = decode_request(std::string_view(said).substr(0, said.size() - 1));
  fuzz::require(encode(again) == said, "a request round trip");
}

void check_event(std::string_view line) {
  const auto said = encode(decode_event(line));
  fuzz::require(said.find('\n') == said.size() - 1, "an event is one line");
  const auto again = decode_event(std::string_view(said).substr(0, said.size() - 1));
  fuzz::require(encode(again) == said, "an event round trip");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view line(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    fuzz::only_request_errors([&] { check_request(line); });
    return 0;
  }
  try {
    check_event(line);
  } catch (const Error& error) {
    fuzz::require(error.code() == ExitCode::kRuntime, "a job that is none is a run-time error");
  }
  return 0;
}
