#include "comm/wire_error.hpp"

#include <algorithm>
#include <string_view>
#include <tuple>

namespace awex {
namespace {

/// The longest prefix of at most `limit` bytes that does not cut a UTF-8 character.
std::string_view prefix(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0U) == 0x80U) --limit;
  return text.substr(0, limit);
}

template <size_t N>
void put(std::array<char, N>& to, std::string_view text) {
  constexpr std::string_view kEllipsis = "...";
  const bool fits = text.size() < N;
  const auto kept = fits ? text : prefix(text, N - 1 - kEllipsis.size());
  auto* end = std::copy(kept.begin(), kept.end(), to.begin());
  if (!fits) end = std::copy(kEllipsis.begin(), kEllipsis.end(), end);
  *end = '\0';
}

template <size_t N>
std::string get(const std::array<char, N>& from) {
  return {from.begin(), std::find(from.begin(), from.end(), '\0')};
}

bool is_consequence(const WireError& wire) {
  const auto code = static_cast<ExitCode>(wire.code);
  return code == ExitCode::kDeadline || code == ExitCode::kPeerLost;
}

}  // namespace

WireError to_wire(const Error& error, double time_s) {
  WireError wire;
  wire.telling = Telling::kFailure;
  wire.code = static_cast<int32_t>(error.code());
  wire.time_s = time_s;
  put(wire.message, error.what());
  put(wire.hint, error.hint());
  const auto& context = error.context();
  wire.rank = context.rank.value_or(-1);
  put(wire.host, context.host);
  put(wire.gpu, context.gpu);
  put(wire.role, context.role);
  put(wire.phase, context.phase);
  put(wire.tag, context.tag);
  put(wire.tensor, context.tensor);
  return wire;
}

Error from_wire(const WireError& wire) {
  Error error(static_cast<ExitCode>(wire.code), get(wire.message), get(wire.hint));
  auto& context = error.context();
  if (wire.rank >= 0) context.rank = wire.rank;
  context.host = get(wire.host);
  context.gpu = get(wire.gpu);
  context.role = get(wire.role);
  context.phase = get(wire.phase);
  context.tag = get(wire.tag);
  context.tensor = get(wire.tensor);
  return error;
}

const WireError* first_cause(std::span<const WireError> verdicts) {
  const auto order = [](const WireError& wire) {
    return std::tuple(is_consequence(wire), wire.time_s);
  };
  const WireError* first = nullptr;
  for (const auto& verdict : verdicts) {
    if (verdict.telling == Telling::kSuccess) continue;
    if (first == nullptr || order(verdict) < order(*first)) first = &verdict;
  }
  return first;
}

}  // namespace awex
