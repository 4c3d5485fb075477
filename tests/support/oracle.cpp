#include "support/oracle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "support/oracle_writer.hpp"

namespace awex::test {
namespace {

class Hf : public Writer {
 public:
  using Writer::Writer;
  RankContents contents() {
    for (const TensorInfo& tensor : catalogue().tensors()) {
      if (!tensor.name.ends_with("_scale_inv")) put(tensor.name, canonical(tensor.name));
    }
    return take();
  }
};

}  // namespace

std::string describe_identity(const Catalogue& catalogue, Identity id) {
  if (id == kPadding) return "padding";
  if (id == kRest) return "the rest of an element";
  const TensorInfo& tensor = catalogue.tensors().at(tensor_of(id));
  return fmt::format("{}[{}, {}]", tensor.name, index_of(id) / tensor.cols,
                     index_of(id) % tensor.cols);
}

std::string EngineCase::spec() const {
  std::string text = engine == "hf" ? engine : fmt::format("{}:tp={}", engine, tp);
  for (const auto& [key, value] : options) {
    text += fmt::format("{}{}={}", text == "hf" ? ':' : ',', key, value);
  }
  return text;
}

uint64_t EngineCase::number(const std::string& key, uint64_t otherwise) const {
  const auto found = options.find(key);
  return found == options.end() ? otherwise : std::stoull(found->second);
}

std::string EngineCase::text(const std::string& key, const std::string& otherwise) const {
  const auto found = options.find(key);
  return found == options.end() ? otherwise : found->second;
}

bool EngineCase::on(const std::string& key, bool otherwise) const {
  return text(key, otherwise ? "on" : "off") == "on";
}

RankContents expected_contents(const EngineCase& engine, const Catalogue& catalogue, uint64_t rank,
                               uint64_t ranks) {
  if (engine.engine == "hf") return Hf(catalogue, scale_block(engine)).contents();
  if (engine.engine == "megatron") return megatron_contents(engine, catalogue, rank, ranks);
  if (engine.engine == "fsdp") return fsdp_contents(engine, catalogue, rank, ranks);
  if (engine.engine == "sglang" || engine.engine == "vllm") {
    return inference_contents(engine, catalogue, rank, ranks);
  }
  throw std::logic_error("oracle: no engine " + engine.engine);
}

std::vector<std::vector<uint64_t>> expected_stages(const EngineCase& engine, uint64_t layers) {
  return engine.engine == "megatron" ? megatron_chunks(engine, layers)
                                     : inference_stages(engine, layers);
}

std::vector<Identity> expected_region(const RankContents& contents, const RankLayout& layout) {
  std::vector<Identity> region(layout.bytes, kPadding);
  for (const Parameter& parameter : layout.parameters) {
    uint64_t byte = parameter.offset_bytes;
    const uint64_t size = element_bytes(parameter.dtype);
    for (const Identity id : contents.at(parameter.name).ids) {
      for (uint64_t i = 0; i < size; ++i) {
        region.at(byte++) = id == kPadding || i == 0 ? id : kRest;
      }
    }
  }
  return region;
}

}  // namespace awex::test
