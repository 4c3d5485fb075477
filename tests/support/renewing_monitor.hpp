#pragma once

#include <chrono>
#include <vector>

#include "base/wait.hpp"

namespace awex::test {

/// Renews deadlines as a job does, and keeps what it is told.
class RenewingMonitor final : public WaitMonitor {
 public:
  void poll() override {}
  void progressed(const WorkProgress& progress) override {
    told.push_back(progress);
    last_ = Clock::now();
  }
  [[nodiscard]] bool overdue(const Deadline& deadline) const override {
    return deadline.expired() && Clock::now() - last_ >= deadline.allowed();
  }

  std::vector<WorkProgress> told;

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_;
};

}  // namespace awex::test
