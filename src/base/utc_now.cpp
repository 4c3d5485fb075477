#include "base/utc_now.hpp"

#include <fmt/chrono.h>

#include <ctime>

namespace awex {

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

}  // namespace awex
