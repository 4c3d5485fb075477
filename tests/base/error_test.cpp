#include "base/error.hpp"

#include <doctest/doctest.h>

#include <cerrno>
#include <string>

using namespace awex;

namespace {

/// Stands in for a library's result code.
enum class Code { kGood, kBad };

Code answer(Code code) { return code; }

}  // namespace

template <>
struct awex::CallResult<Code> {
  static bool ok(Code code) { return code == Code::kGood; }
  static std::string describe(Code /*code*/) { return "CODE_BAD (1)"; }
};

TEST_CASE("an error keeps code, message, hint and what it is about") {
  try {
    throw request_error("the message", "the hint").about_tensor("lm_head").about_tag("weights");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    CHECK(std::string(error.what()) == "the message");
    CHECK(error.hint() == "the hint");
    CHECK(error.context().tensor == "lm_head");
    CHECK(error.context().tag == "weights");
    CHECK_FALSE(error.context().rank.has_value());
  }
}

TEST_CASE("the numbers of exit codes are promised to users") {
  CHECK(static_cast<int>(ExitCode::kOk) == 0);
  CHECK(static_cast<int>(ExitCode::kRuntime) == 1);
  CHECK(static_cast<int>(ExitCode::kRequest) == 2);
  CHECK(static_cast<int>(ExitCode::kMismatch) == 3);
  CHECK(static_cast<int>(ExitCode::kDeadline) == 4);
  CHECK(static_cast<int>(ExitCode::kPeerLost) == 5);
}

TEST_CASE("a failed POSIX call says what was tried, the call, its text and its number") {
  const auto error = errno_error("open \"x\"", "open", ENOENT);
  CHECK(error.code() == ExitCode::kRuntime);
  CHECK(std::string(error.what()) == "cannot open \"x\": open: No such file or directory (2)");
  CHECK(error.hint().empty());
}

TEST_CASE("a POSIX number that says enough has its words and what to do about it") {
  struct Case {
    int number;
    const char* words;  ///< strerror's, in part.
    const char* hint;
  };
  for (const auto& [number, words, hint] : {
           Case{ENOSPC, "No space left", "df -h"},
           Case{EDQUOT, "quota exceeded", "your quota there is used up"},
           Case{EMFILE, "Too many open files",
                "this process has too many open files: raise the "
                "limit (ulimit -n)"},
           Case{ENFILE, "Too many open files in system", "fs.file-max"},
           Case{EFBIG, "File too large", "ulimit -f"},
           Case{ENOMEM, "Cannot allocate memory", "free host memory"},
           Case{EACCES, "Permission denied", "ls -l"},
           Case{EPERM, "Operation not permitted", "ls -l"},
           Case{EROFS, "Read-only file system", "mount"},
           Case{EIO, "Input/output error", "dmesg"},
       }) {
    CAPTURE(number);
    const auto error = errno_error("write \"x\"", "pwrite", number);
    CHECK(error.code() == ExitCode::kRuntime);
    CHECK(std::string(error.what()).find("cannot write \"x\": pwrite: ") == 0);
    CHECK(std::string(error.what()).find(words) != std::string::npos);
    CHECK(std::string(error.what()).find(fmt::format("({})", number)) != std::string::npos);
    CHECK(error.hint().find(hint) != std::string::npos);
  }
}

TEST_CASE("AWEX_CHECK passes good results and names the call of bad ones") {
  AWEX_CHECK(answer(Code::kGood), "take {} bytes", 7);
  CHECK_THROWS_WITH_AS(AWEX_CHECK(answer(Code::kBad), "take {} bytes", 7),
                       "cannot take 7 bytes: answer: CODE_BAD (1)", Error);
}

TEST_CASE("the text of a check is made only on failure") {
  int made = 0;
  const auto text = [&made] { return ++made; };
  AWEX_CHECK(answer(Code::kGood), "{}", text());
  CHECK(made == 0);
}

TEST_CASE("a call's name ends at its parenthesis") {
  CHECK(called_function("f(a, g(b))") == "f");
  CHECK(called_function("code") == "code");
}
