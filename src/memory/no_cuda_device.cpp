// The cuda backend of a binary that was built without it.
#include "base/error.hpp"
#include "memory/device.hpp"

namespace awex {

bool built_with_cuda() { return false; }

int cuda_device_count() { return 0; }

std::string why_no_cuda_device() { return "this binary was built without CUDA"; }

std::unique_ptr<Device> make_cuda_device(int index, size_t /*pool_threads*/) {
  throw request_error(
      fmt::format("cannot open gpu {}: this binary was built without CUDA", index),
      "run with --backend host, or build again where nvcc, the CUDA Toolkit and NCCL are found");
}

}  // namespace awex
