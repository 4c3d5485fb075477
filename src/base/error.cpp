#include "base/error.hpp"

#include <cstring>

namespace awex {

Error errno_error(const std::string& attempt, const char* call, int error_number) {
  return runtime_error(fmt::format("cannot {}: {}: {} ({})", attempt, call,
                                   std::strerror(error_number), error_number));
}

std::string called_function(const char* call) {
  const std::string text(call);
  return text.substr(0, text.find('('));
}

void throw_failed_call(const std::string& attempt, const char* call,
                       const std::string& description) {
  throw runtime_error(
      fmt::format("cannot {}: {}: {}", attempt, called_function(call), description));
}

}  // namespace awex
