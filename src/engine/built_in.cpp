#include "engine/engine.hpp"
#include "engine/inference_stand_in.hpp"
#include "engine/trainer_stand_in.hpp"

namespace awex {
namespace {

class BuiltInEngines final : public EngineFactory {
 public:
  [[nodiscard]] std::unique_ptr<TrainerEngine> make_trainer(
      const TrainerParts& parts) const override {
    return std::make_unique<TrainerStandIn>(parts);
  }
  [[nodiscard]] std::unique_ptr<Engine> make_inference(const InferenceParts& parts) const override {
    return std::make_unique<InferenceStandIn>(parts);
  }
};

}  // namespace

const EngineFactory& built_in_engines() {
  static const BuiltInEngines engines;
  return engines;
}

}  // namespace awex
