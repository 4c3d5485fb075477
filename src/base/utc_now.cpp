#include "base/utc_now.hpp"

#include <fmt/chrono.h>

#include <chrono>
#include <ctime>

namespace awex {

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

std::string utc_now_in_milliseconds() {
  using std::chrono::milliseconds;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto passed = std::chrono::duration_cast<milliseconds>(now).count();
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(std::time_t{passed / 1000}),
                     passed % 1000);
}

}  // namespace awex
