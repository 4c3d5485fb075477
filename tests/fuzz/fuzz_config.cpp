// Whatever a config.json holds, it is refused as a wrong request or read to a config that is
// bounded and survives being written and read again.
#include <cstdint>
#include <string_view>

#include "fuzz/untrusted.hpp"
#include "model/catalogue.hpp"
#include "model/config.hpp"

namespace {

using namespace awex;

void check(const ModelConfig& config) {
  fuzz::require(parse_config(config_to_json(config), "again") == config, "config.json round trip");
  const auto tensors = config.layers * (16 + 3 * config.experts) + 3;
  fuzz::require(tensors <= 1'000'000, "at most a million tensors");
  if (tensors > 2'000) return;  // building large catalogues would only slow the search down
  const auto catalogue = make_catalogue("fuzz", config);
  fuzz::require(catalogue.tensors().size() <= tensors, "the bound on tensors is a bound");
  fuzz::require(catalogue.elements() < uint64_t{1} << 56, "the bound on elements is a bound");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  fuzz::only_request_errors([&] { check(parse_config(text, "config.json")); });
  return 0;
}
