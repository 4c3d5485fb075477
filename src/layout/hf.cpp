#include "layout/hf.hpp"

#include <string>
#include <utility>

#include "layout/builder.hpp"
#include "layout/held_catalogue.hpp"

namespace awex {
namespace {

class HfLayout final : public Layout {
 public:
  HfLayout(const Catalogue& catalogue, std::string description, uint32_t ranks)
      : catalogue_(catalogue), description_(std::move(description)), ranks_(ranks) {}

  [[nodiscard]] std::string describe() const override { return description_; }
  [[nodiscard]] uint32_t ranks() const override { return ranks_; }
  [[nodiscard]] uint32_t first_like(uint32_t /*rank*/) const override { return 0; }

  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override {
    RankLayoutBuilder builder(catalogue_, rank);
    // The builder puts scales behind what they scale.
    const uint32_t tensors = model_tensors(catalogue_);
    for (uint32_t tensor = 0; tensor < tensors; ++tensor) {
      builder.replicated(catalogue_.tensors()[tensor].name, tensor, {});
    }
    return builder.finish();
  }

 private:
  const Catalogue& catalogue_;
  std::string description_;
  uint32_t ranks_;
};

}  // namespace

std::unique_ptr<Layout> make_hf_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                       uint32_t ranks) {
  spec.allow_only({});
  return std::make_unique<HfLayout>(catalogue, "hf", ranks);
}

std::unique_ptr<Layout> make_hf_inference_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                                 uint32_t ranks) {
  spec.allow_only({"dtype", "block"});
  auto options = DTypeRules::read(spec, catalogue.config()).text();
  if (!options.empty()) options.front() = ':';
  return std::make_unique<HfLayout>(catalogue, "hf" + options, ranks);
}

}  // namespace awex
