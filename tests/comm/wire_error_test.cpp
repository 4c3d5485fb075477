#include "comm/wire_error.hpp"

#include <doctest/doctest.h>

#include <vector>

namespace {

using awex::Error;
using awex::ExitCode;
using awex::first_cause;
using awex::from_wire;
using awex::to_wire;
using awex::WireError;

WireError failure(ExitCode code, double time_s, int rank) {
  Error error(code, "a failure");
  error.context().rank = rank;
  return to_wire(error, time_s);
}

}  // namespace

TEST_CASE("an error survives the wire") {
  Error error(ExitCode::kMismatch, "bytes differ", "look here");
  error.context() = {3, "a", "1", "inference", "verify", "weights", "model.norm.weight"};
  const Error back = from_wire(to_wire(error, 1.5));
  CHECK(back.code() == ExitCode::kMismatch);
  CHECK(std::string(back.what()) == "bytes differ");
  CHECK(back.hint() == "look here");
  CHECK(back.context().rank == 3);
  CHECK(back.context().host == "a");
  CHECK(back.context().gpu == "1");
  CHECK(back.context().role == "inference");
  CHECK(back.context().phase == "verify");
  CHECK(back.context().tag == "weights");
  CHECK(back.context().tensor == "model.norm.weight");
}

TEST_CASE("an unknown rank stays unknown") {
  CHECK_FALSE(from_wire(to_wire(Error(ExitCode::kRuntime, "x"), 0)).context().rank.has_value());
}

TEST_CASE("long texts are cut between characters") {
  std::string text;
  while (text.size() < 4000) text += "\u00e4";  // two bytes
  for (const size_t shift : {size_t{0}, size_t{1}}) {
    const std::string what =
        from_wire(
            to_wire(Error(ExitCode::kRuntime, text.substr(0, 0) + std::string(shift, 'a') + text),
                    0))
            .what();
    CHECK(what.size() > 1500);
    CHECK(what.size() < 1536);
    CHECK(what.substr(what.size() - 3) == "...");
    CHECK((what.size() - 3 - shift) % 2 == 0);
  }
}

TEST_CASE("the first cause") {
  std::vector<WireError> verdicts(4);
  CHECK(first_cause(verdicts) == nullptr);
  verdicts[1] = failure(ExitCode::kDeadline, 1, 1);
  CHECK(first_cause(verdicts) == &verdicts[1]);
  verdicts[2] = failure(ExitCode::kRuntime, 9, 2);
  CHECK(first_cause(verdicts) == &verdicts[2]);
  verdicts[3] = failure(ExitCode::kMismatch, 8, 3);
  CHECK(first_cause(verdicts) == &verdicts[3]);
  verdicts[0] = failure(ExitCode::kPeerLost, 0, 0);
  CHECK(first_cause(verdicts) == &verdicts[3]);
  verdicts[2] = failure(ExitCode::kRuntime, 8, 2);
  CHECK(first_cause(verdicts) == &verdicts[2]);
}
