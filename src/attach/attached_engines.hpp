#pragma once

#include <functional>
#include <memory>
#include <string>

#include "attach/engine_record.hpp"
#include "base/wait.hpp"
#include "engine/engine.hpp"

namespace awex::attach {

/// How a job's engines attach.
struct AttachSettings {
  std::string job_directory;
  bool trainer = false;  ///< Which roles engines play; the others are built in.
  bool inference = false;
  /// Whether inference has weights at the start, to be proven before the first transfer.
  bool admits_by_digest = true;
  Seconds patience{600};       ///< For an engine to come, and to seal.
  EngineRecord here;           ///< Of this rank, but for role, device, uuid and socket.
  bool takes_memory = true;    ///< Commands take engines' memory; false under --no-offload.
  std::function<void()> wake;  ///< See Door.
};

/// Lets the engines of some roles attach. A rank has one door, which lives as long as this: it must
/// outlive the engines that it makes, and be destroyed after them: the engines then learn that the
/// job has ended.
class AttachedEngines final : public EngineFactory {
 public:
  explicit AttachedEngines(AttachSettings settings);
  AttachedEngines(const AttachedEngines&) = delete;
  AttachedEngines& operator=(const AttachedEngines&) = delete;
  AttachedEngines(AttachedEngines&&) = delete;
  AttachedEngines& operator=(AttachedEngines&&) = delete;
  ~AttachedEngines() override;

  /// What the engine learns when this is destroyed; without it that the job ends in order.
  void end_with(const Error& error);
  /// Removes what lost ranks of this host have left in the job's directory.
  void bury(const std::function<bool(const EngineRecord&)>& is_lost) const noexcept;

  [[nodiscard]] bool attaches(Role role) const override;
  [[nodiscard]] bool admits_by_digest() const override;
  [[nodiscard]] EngineNeeds await_engine(Role role, uint32_t position, const Device& device,
                                         WaitMonitor& monitor) const override;
  [[nodiscard]] std::unique_ptr<TrainerEngine> make_trainer(
      const TrainerParts& parts) const override;
  [[nodiscard]] std::unique_ptr<Engine> make_inference(const InferenceParts& parts) const override;

 private:
  struct AtTheDoor;
  std::unique_ptr<AtTheDoor> at_the_door_;
};

}  // namespace awex::attach
