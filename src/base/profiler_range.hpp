#pragma once

#include <string>

namespace awex {

/// Names a stretch of this thread's time for profilers (Nsight Systems, through NVTX) from its
/// making to its destruction. Costs nothing without one, and is nothing in a build without CUDA.
class ProfilerRange {
 public:
  explicit ProfilerRange(const std::string& name);
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
  ProfilerRange(ProfilerRange&&) = delete;
  ProfilerRange& operator=(ProfilerRange&&) = delete;
  ~ProfilerRange();
};

}  // namespace awex
