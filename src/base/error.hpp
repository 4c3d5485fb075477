#pragma once

#include <fmt/format.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace awex {

/// What the process returns to its caller; the numbers are promised to users.
enum class ExitCode : int {
  kOk = 0,
  kRuntime = 1,   ///< Failed at run time.
  kRequest = 2,   ///< The request is wrong: options, config, checkpoint, layout that does not fit.
  kMismatch = 3,  ///< Bytes differ from the trainer's.
  kDeadline = 4,  ///< A deadline passed.
  kPeerLost = 5,  ///< A peer process is gone.
};

/// Where and about what something failed. Empty strings mean "unknown".
struct ErrorContext {
  std::optional<int> rank;  ///< Rank in the job's world.
  std::string host;
  std::string gpu;
  std::string role;
  std::string phase;
  std::string tag;
  std::string tensor;
};

/// The one exception type of the product. `what()` is the message for a person: what was tried with
/// names and bytes, the call, the symbol and number. The hint says what to do next.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message, std::string hint = {})
      : std::runtime_error(message), code_(code), hint_(std::move(hint)) {}

  [[nodiscard]] ExitCode code() const { return code_; }
  [[nodiscard]] const std::string& hint() const { return hint_; }
  [[nodiscard]] const ErrorContext& context() const { return context_; }
  [[nodiscard]] ErrorContext& context() { return context_; }

  /// Names the tensor the failure is about.
  Error&& about_tensor(std::string tensor) && {
    context_.tensor = std::move(tensor);
    return std::move(*this);
  }
  /// Names the memory tag the failure is about.
  Error&& about_tag(std::string tag) && {
    context_.tag = std::move(tag);
    return std::move(*this);
  }

 private:
  ExitCode code_;
  std::string hint_;
  ErrorContext context_;
};

/// An error in what the user asked for (exit code 2).
[[nodiscard]] inline Error request_error(const std::string& message, std::string hint = {}) {
  return {ExitCode::kRequest, message, std::move(hint)};
}

/// A failure while running (exit code 1).
[[nodiscard]] inline Error runtime_error(const std::string& message, std::string hint = {}) {
  return {ExitCode::kRuntime, message, std::move(hint)};
}

/// A failed POSIX call (exit code 1): "cannot <attempt>: <call>: <strerror> (<errno>)", with a hint
/// where the number alone tells what to do.
[[nodiscard]] Error errno_error(const std::string& attempt, const char* call, int error_number);

/// How AWEX_CHECK reads the result of a library's call. Each library's folder specialises it:
/// `static bool ok(Code)` and `static std::string describe(Code)`, "SYMBOL (number)" and text.
template <class Code>
struct CallResult;

/// Throws a run-time Error "cannot <attempt>: <call>: <symbol and number>".
[[noreturn]] void throw_failed_call(const std::string& attempt, const char* call,
                                    const std::string& description);

/// The name of the function in a stringified call expression: "f(a, b)" gives "f".
[[nodiscard]] std::string called_function(const char* call);

}  // namespace awex

/// Checks the result of a CUDA, driver or NCCL call. The further arguments are a fmt format and its
/// values that complete the sentence "cannot …"; they are evaluated only on failure.
#define AWEX_CHECK(call, ...)                                                     \
  do {                                                                            \
    const auto awex_code = (call);                                                \
    using AwexResult = ::awex::CallResult<std::remove_cv_t<decltype(awex_code)>>; \
    if (!AwexResult::ok(awex_code)) {                                             \
      ::awex::throw_failed_call(::fmt::format(__VA_ARGS__), #call,                \
                                AwexResult::describe(awex_code));                 \
    }                                                                             \
  } while (false)
