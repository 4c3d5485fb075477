#include "doctor/wire_examination.hpp"

#include <algorithm>

namespace awex {

WireFinding to_wire(const Finding& finding) {
  WireFinding wire{
      finding.verdict, fixed_text<384>(finding.reason), fixed_text<384>(finding.remedy), {}};
  const size_t count = std::min(finding.values.size(), wire.values.size());
  for (size_t i = 0; i < count; ++i) {
    wire.values.at(i) = {fixed_text<32>(finding.values[i].first), finding.values[i].second};
  }
  return wire;
}

Finding from_wire(const WireFinding& wire) {
  Finding finding{wire.verdict, text_of(wire.reason), text_of(wire.remedy), {}};
  for (const auto& value : wire.values) {
    if (value.name.front() == '\0') break;
    finding.values.emplace_back(text_of(value.name), value.value);
  }
  return finding;
}

}  // namespace awex
