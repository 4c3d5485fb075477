#include "comm/wire_error.hpp"

#include <string_view>
#include <tuple>

namespace awex {
namespace {

template <size_t N>
void set(FixedText<N>& to, std::string_view text) {
  to = fixed_text<N>(text);
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
  set(wire.message, error.what());
  set(wire.hint, error.hint());
  const auto& context = error.context();
  wire.rank = context.rank.value_or(-1);
  set(wire.host, context.host);
  set(wire.gpu, context.gpu);
  set(wire.role, context.role);
  set(wire.phase, context.phase);
  set(wire.tag, context.tag);
  set(wire.tensor, context.tensor);
  return wire;
}

Error from_wire(const WireError& wire) {
  Error error(static_cast<ExitCode>(wire.code), text_of(wire.message), text_of(wire.hint));
  auto& context = error.context();
  if (wire.rank >= 0) context.rank = wire.rank;
  context.host = text_of(wire.host);
  context.gpu = text_of(wire.gpu);
  context.role = text_of(wire.role);
  context.phase = text_of(wire.phase);
  context.tag = text_of(wire.tag);
  context.tensor = text_of(wire.tensor);
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
