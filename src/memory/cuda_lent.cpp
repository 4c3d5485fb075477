#include "memory/cuda_lent.hpp"

#include <fcntl.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "memory/cuda_check.hpp"
#include "memory/cuda_driver.hpp"

namespace awex {
namespace {

constexpr auto kRemedy =
    "let a job that is started anew have it (adopt), or let PyTorch take it in another way: "
    "cudaMalloc (its default) and PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True can be "
    "exported; torch_memory_saver and "
    "vLLM's sleep mode cannot";

CUdeviceptr number_of(const std::byte* address) { return reinterpret_cast<CUdeviceptr>(address); }

/// What the driver has mapped or taken in one piece around an address.
LentBlock extent_of(CUdeviceptr address) {
  CUdeviceptr base = 0;
  size_t bytes = 0;
  const auto result = cuMemGetAddressRange(&base, &bytes, address);
  if (result != CUDA_SUCCESS) {
    throw request_error(fmt::format("what lies at {:#x} is no memory of the GPU: "
                                    "cuMemGetAddressRange: {}",
                                    address, CallResult<CUresult>::describe(result)),
                        kRemedy);
  }
  return {base, bytes, 0, false, {}};
}

/// Owns a handle of physical memory.
class RetainedHandle {
 public:
  /// Not valid where the address is of no virtual memory management.
  explicit RetainedHandle(CUdeviceptr address) {
    is_valid_ =
        cuMemRetainAllocationHandle(&handle_, std::bit_cast<void*>(address)) == CUDA_SUCCESS;
  }
  RetainedHandle(const RetainedHandle&) = delete;
  RetainedHandle& operator=(const RetainedHandle&) = delete;
  RetainedHandle(RetainedHandle&&) = delete;
  RetainedHandle& operator=(RetainedHandle&&) = delete;
  ~RetainedHandle() {
    if (is_valid_) cuMemRelease(handle_);
  }

  [[nodiscard]] bool is_valid() const { return is_valid_; }
  /// Its descriptor.
  [[nodiscard]] CUresult export_to(UniqueFd& descriptor) const {
    int fd = -1;
    const auto result =
        cuMemExportToShareableHandle(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    if (result == CUDA_SUCCESS) descriptor = UniqueFd(fd);
    return result;
  }

 private:
  CUmemGenericAllocationHandle handle_ = 0;
  bool is_valid_ = false;
};

/// What cudaMalloc gave.
class OpenedIpcBlock final : public OpenedBlock {
 public:
  OpenedIpcBlock(const std::string& name, const LentBlock& block) : offset_(block.offset_bytes) {
    cudaIpcMemHandle_t handle{};
    static_assert(sizeof(handle) == sizeof(block.ipc));
    std::memcpy(&handle, block.ipc.data(), sizeof(handle));
    void* data = nullptr;
    AWEX_CHECK(cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess),
               "open what is lent of {}", name);
    data_ = static_cast<std::byte*>(data);
  }
  OpenedIpcBlock(const OpenedIpcBlock&) = delete;
  OpenedIpcBlock& operator=(const OpenedIpcBlock&) = delete;
  OpenedIpcBlock(OpenedIpcBlock&&) = delete;
  OpenedIpcBlock& operator=(OpenedIpcBlock&&) = delete;
  ~OpenedIpcBlock() override { cudaIpcCloseMemHandle(data_); }

  [[nodiscard]] const std::byte* data() const override { return data_ + offset_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t offset_;
};

/// What one handle of virtual memory management stands for.
class OpenedVmmBlock final : public OpenedBlock {
 public:
  OpenedVmmBlock(const CudaMemorySource& source, const std::string& name, const LentBlock& block,
                 const UniqueFd& fd)
      : chunk_(make_cuda_mapping(source, name, block.bytes, block.bytes, MappedAccess::kRead)) {
    UniqueFd copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
    if (!copy.valid()) throw errno_error("keep a descriptor of lent memory", "fcntl", errno);
    std::vector<UniqueFd> fds;
    fds.push_back(std::move(copy));
    chunk_->map(std::move(fds));
  }
  OpenedVmmBlock(const OpenedVmmBlock&) = delete;
  OpenedVmmBlock& operator=(const OpenedVmmBlock&) = delete;
  OpenedVmmBlock(OpenedVmmBlock&&) = delete;
  OpenedVmmBlock& operator=(OpenedVmmBlock&&) = delete;
  ~OpenedVmmBlock() override = default;

  [[nodiscard]] const std::byte* data() const override { return chunk_->data(); }

 private:
  std::unique_ptr<MappedChunks> chunk_;
};

}  // namespace

Lending lend_cuda_memory(const std::byte* address) {
  const CUdeviceptr number = number_of(address);
  Lending lending;
  lending.block = extent_of(number);
  const RetainedHandle physical(number);
  if (physical.is_valid()) {
    lending.block.has_fd = true;
    const auto result = physical.export_to(lending.fd);
    if (result == CUDA_SUCCESS) return lending;
    const auto why =
        fmt::format("cuMemExportToShareableHandle: {}", CallResult<CUresult>::describe(result));
    if (result == CUDA_ERROR_OPERATING_SYSTEM || result == CUDA_ERROR_OUT_OF_MEMORY) {
      throw runtime_error(
          fmt::format("cannot lend the memory at {:#x}: {}", number, why),
          "it takes a descriptor for each: see the limit of open files (ulimit -n)");
    }
    throw request_error(fmt::format("the memory at {:#x} was taken in a way that no other process "
                                    "can map: {}",
                                    number, why),
                        kRemedy);
  }
  cudaIpcMemHandle_t handle{};
  const auto result = cudaIpcGetMemHandle(&handle, std::bit_cast<void*>(lending.block.address));
  if (result != cudaSuccess) {
    throw request_error(fmt::format("the memory at {:#x} cannot be exported: cudaIpcGetMemHandle: "
                                    "{}",
                                    number, CallResult<cudaError_t>::describe(result)),
                        kRemedy);
  }
  std::memcpy(lending.block.ipc.data(), &handle, sizeof(handle));
  return lending;
}

std::unique_ptr<OpenedBlock> open_cuda_block(const CudaMemorySource& source,
                                             const std::string& name, const LentBlock& block,
                                             const UniqueFd& fd) {
  if (block.has_fd) return std::make_unique<OpenedVmmBlock>(source, name, block, fd);
  return std::make_unique<OpenedIpcBlock>(name, block);
}

}  // namespace awex
