#include "layout/hf.hpp"

#include "layout/builder.hpp"

namespace awex {
namespace {

class HfLayout final : public Layout {
 public:
  HfLayout(const Catalogue& catalogue, uint32_t ranks) : catalogue_(catalogue), ranks_(ranks) {}

  [[nodiscard]] std::string describe() const override { return "hf"; }
  [[nodiscard]] uint32_t ranks() const override { return ranks_; }
  [[nodiscard]] uint32_t first_like(uint32_t /*rank*/) const override { return 0; }

  [[nodiscard]] RankLayout rank_layout(uint32_t rank) const override {
    RankLayoutBuilder builder(catalogue_, rank);
    for (const auto& tensor : catalogue_.tensors()) {
      builder.replicated(tensor.name, tensor.name, {});
    }
    return builder.finish();
  }

 private:
  const Catalogue& catalogue_;
  uint32_t ranks_;
};

}  // namespace

std::unique_ptr<Layout> make_hf_layout(const EngineSpec& spec, const Catalogue& catalogue,
                                       uint32_t ranks) {
  spec.allow_only({});
  return std::make_unique<HfLayout>(catalogue, ranks);
}

}  // namespace awex
