#include "memory/cuda_ranges.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "memory/cuda_check.hpp"
#include "memory/cuda_driver.hpp"

namespace awex {
namespace {

/// Owns an address range without memory behind it.
class ReservedAddresses {
 public:
  ReservedAddresses(uint64_t bytes, const std::string& name) : bytes_(bytes) {
    AWEX_CHECK(cuMemAddressReserve(&address_, bytes_, 0, 0, 0),
               "reserve {} of device addresses for \"{}\"", format_bytes(bytes_), name);
  }
  ReservedAddresses(const ReservedAddresses&) = delete;
  ReservedAddresses& operator=(const ReservedAddresses&) = delete;
  ReservedAddresses(ReservedAddresses&&) = delete;
  ReservedAddresses& operator=(ReservedAddresses&&) = delete;
  ~ReservedAddresses() { cuMemAddressFree(address_, bytes_); }

  [[nodiscard]] CUdeviceptr address() const { return address_; }
  [[nodiscard]] std::byte* data() const {
    return reinterpret_cast<std::byte*>(address_);  // NOLINT(performance-no-int-to-ptr)
  }

 private:
  CUdeviceptr address_ = 0;
  uint64_t bytes_;
};

/// Owns one reference to physical memory.
class PhysicalMemory {
 public:
  explicit PhysicalMemory(CUmemGenericAllocationHandle handle) : handle_(handle) {}
  PhysicalMemory(PhysicalMemory&& other) noexcept
      : handle_(std::exchange(other.handle_, std::nullopt)) {}
  PhysicalMemory& operator=(PhysicalMemory&&) = delete;
  PhysicalMemory(const PhysicalMemory&) = delete;
  PhysicalMemory& operator=(const PhysicalMemory&) = delete;
  ~PhysicalMemory() {
    if (handle_) cuMemRelease(*handle_);
  }

  [[nodiscard]] CUmemGenericAllocationHandle get() const { return handle_.value(); }

  /// Gives the reference up, whatever the driver answers.
  [[nodiscard]] CUresult release() {
    const auto handle = std::exchange(handle_, std::nullopt);
    return handle ? cuMemRelease(*handle) : CUDA_SUCCESS;
  }

 private:
  std::optional<CUmemGenericAllocationHandle> handle_;
};

/// Owns the mapping of physical memory at an address, until `unmap` has ended it with its
/// neighbours'.
class MemoryMapping {
 public:
  MemoryMapping(CUdeviceptr address, uint64_t bytes, const PhysicalMemory& memory,
                const std::string& what)
      : bytes_(bytes) {
    AWEX_CHECK(cuMemMap(address, bytes, 0, memory.get(), 0), "map {}", what);
    address_ = address;
  }
  MemoryMapping(MemoryMapping&& other) noexcept
      : address_(std::exchange(other.address_, std::nullopt)), bytes_(other.bytes_) {}
  MemoryMapping& operator=(MemoryMapping&&) = delete;
  MemoryMapping(const MemoryMapping&) = delete;
  MemoryMapping& operator=(const MemoryMapping&) = delete;
  ~MemoryMapping() {
    if (address_) cuMemUnmap(*address_, bytes_);
  }

  void forget() { address_.reset(); }

 private:
  std::optional<CUdeviceptr> address_;
  uint64_t bytes_;
};

/// Lets a device use mapped addresses.
CUresult allow(CUdeviceptr address, uint64_t bytes, int device, CUmemAccess_flags access) {
  CUmemAccessDesc description{};
  description.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  description.location.id = device;
  description.flags = access;
  return cuMemSetAccess(address, bytes, &description, 1);
}

CUmemAllocationProp exportable_memory(int device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

/// Physical memory on a device; a lack of it is told with what is free.
PhysicalMemory create_memory(int device, uint64_t bytes, const std::string& what) {
  const auto properties = exportable_memory(device);
  CUmemGenericAllocationHandle handle = 0;
  const auto result = cuMemCreate(&handle, bytes, &properties, 0);
  if (result == CUDA_SUCCESS) return PhysicalMemory(handle);
  std::string free_memory = "unknown";
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  if (cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess) {
    free_memory = fmt::format("{} of {}", format_bytes(free_bytes), format_bytes(total_bytes));
  }
  const auto cause = CallResult<CUresult>::describe(result);
  const auto message = fmt::format("cannot take {}: cuMemCreate: {}; free on gpu {}: {}", what,
                                   cause, device, free_memory);
  if (result != CUDA_ERROR_OUT_OF_MEMORY) throw runtime_error(message);
  throw runtime_error(message,
                      "nvidia-smi shows the processes that hold this GPU's memory; a smaller "
                      "--kv-cache or a layout over more GPUs needs less of it");
}

Chunking checked_chunking(const CudaMemorySource& source, Chunking chunking) {
  if (chunking.bytes > 0 && chunking.chunk_bytes > 0 &&
      chunking.chunk_bytes % source.granularity_bytes == 0 &&
      kPhysicalStepBytes % source.granularity_bytes == 0) {
    return chunking;
  }
  throw runtime_error(fmt::format(
      "cannot reserve \"{}\": {} bytes in chunks of {} bytes and steps of {} bytes do not fit gpu "
      "{}'s granularity of {} bytes",
      chunking.name, chunking.bytes, chunking.chunk_bytes, kPhysicalStepBytes, source.device,
      source.granularity_bytes));
}

class CudaOwnedChunks final : public OwnedChunks {
 public:
  CudaOwnedChunks(const CudaMemorySource& source, Chunking chunking)
      : OwnedChunks(std::move(chunking)),
        device_(source.device),
        chunks_(this->chunking().count()) {}

  [[nodiscard]] const PhysicalMemory& memory(uint64_t chunk) const {
    return chunks_.at(chunk).value().memory;
  }

 protected:
  void do_take(uint64_t first, uint64_t count) override {
    std::vector<PhysicalMemory> taken;
    taken.reserve(count);
    for (uint64_t chunk = first; chunk < first + count; ++chunk) {
      taken.push_back(
          create_memory(device_, chunking().held_bytes(chunk, 1), chunking().describe(chunk, 1)));
    }
    for (uint64_t i = 0; i < count; ++i) {
      chunks_[first + i].emplace(Chunk{std::move(taken[i]), UniqueFd()});
    }
  }

  void do_release(uint64_t first, uint64_t count) override {
    auto failure = CUDA_SUCCESS;
    for (uint64_t i = 0; i < count; ++i) {
      auto memory = std::move(chunks_[first + i]->memory);
      chunks_[first + i].reset();
      const auto result = memory.release();
      if (failure == CUDA_SUCCESS) failure = result;
    }
    if (failure == CUDA_SUCCESS) return;
    throw_failed_call("release " + chunking().describe(first, count), "cuMemRelease",
                      CallResult<CUresult>::describe(failure));
  }

  [[nodiscard]] int do_export(uint64_t chunk) override {
    auto& held = *chunks_[chunk];
    if (!held.fd.valid()) held.fd = export_chunk(chunk);
    return held.fd.get();
  }

 private:
  struct Chunk {
    PhysicalMemory memory;
    UniqueFd fd;  ///< Not valid until it is exported.
  };

  [[nodiscard]] UniqueFd export_chunk(uint64_t chunk) const {
    int fd = -1;
    AWEX_CHECK(cuMemExportToShareableHandle(&fd, chunks_[chunk]->memory.get(),
                                            CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
               "export {} as a file descriptor (see the limit of open files, ulimit -n)",
               chunking().describe(chunk, 1));
    return UniqueFd(fd);
  }

  int device_;
  std::vector<std::optional<Chunk>> chunks_;
};

class CudaMappedChunks final : public MappedChunks {
 public:
  CudaMappedChunks(const CudaMemorySource& source, Chunking chunking, MappedAccess access)
      : MappedChunks(std::move(chunking)),
        device_(source.device),
        access_(access),
        addresses_(held_bytes_for(this->chunking().bytes), this->chunking().name),
        mappings_(this->chunking().count()) {}

  [[nodiscard]] std::byte* data() const override { return addresses_.data(); }

 protected:
  void do_map(OwnedChunks& owner, uint64_t first, uint64_t count) override {
    const auto& owned = dynamic_cast<const CudaOwnedChunks&>(owner);
    std::vector<MemoryMapping> mappings;
    mappings.reserve(count);
    for (uint64_t chunk = first; chunk < first + count; ++chunk) {
      mappings.push_back(map_chunk(chunk, owned.memory(chunk), chunking().describe(chunk, 1)));
    }
    keep(first, std::move(mappings), chunking().describe(first, count));
  }

  void do_map(uint64_t first, std::vector<UniqueFd> fds) override {
    std::vector<MemoryMapping> mappings;
    mappings.reserve(fds.size());
    for (uint64_t i = 0; i < fds.size(); ++i) {
      mappings.push_back(import_chunk(first + i, fds[i].get()));
    }
    keep(first, std::move(mappings), "imported " + chunking().describe(first, fds.size()));
  }

  void do_unmap(uint64_t first, uint64_t count, const std::string& what) override {
    AWEX_CHECK(cuMemUnmap(address_of(first), chunking().held_bytes(first, count)), "unmap {}",
               what);
    for (uint64_t i = 0; i < count; ++i) {
      mappings_[first + i]->forget();
      mappings_[first + i].reset();
    }
  }

 private:
  [[nodiscard]] CUdeviceptr address_of(uint64_t chunk) const {
    return addresses_.address() + chunking().begin(chunk);
  }

  [[nodiscard]] MemoryMapping map_chunk(uint64_t chunk, const PhysicalMemory& memory,
                                        const std::string& what) const {
    return {address_of(chunk), chunking().held_bytes(chunk, 1), memory, what};
  }

  /// The mapping keeps the memory, so the handle goes as soon as it is mapped.
  [[nodiscard]] MemoryMapping import_chunk(uint64_t chunk, int fd) const {
    const auto what = "imported " + chunking().describe(chunk, 1);
    // The driver takes the descriptor's number in place of a pointer to it.
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    void* os_handle = reinterpret_cast<void*>(static_cast<intptr_t>(fd));
    CUmemGenericAllocationHandle handle = 0;
    AWEX_CHECK(cuMemImportFromShareableHandle(&handle, os_handle,
                                              CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
               "import {} from file descriptor {}", what, fd);
    return map_chunk(chunk, PhysicalMemory(handle), what);
  }

  /// Lets the device use what has been mapped, and takes it in.
  void keep(uint64_t first, std::vector<MemoryMapping> mappings, const std::string& what) {
    const CUdeviceptr begin = address_of(first);
    const uint64_t bytes = chunking().held_bytes(first, mappings.size());
    switch (access_) {
      case MappedAccess::kRead:
        allow_reading(begin, bytes, what);
        break;
      case MappedAccess::kReadWrite:
        allow_writing(begin, bytes, what);
        break;
    }
    for (uint64_t i = 0; i < mappings.size(); ++i) {
      mappings_[first + i].emplace(std::move(mappings[i]));
    }
  }

  /// Drivers that know no read-only device memory get it writable: nothing here writes to it.
  void allow_reading(CUdeviceptr begin, uint64_t bytes, const std::string& what) const {
    const auto result = allow(begin, bytes, device_, CU_MEM_ACCESS_FLAGS_PROT_READ);
    if (result == CUDA_SUCCESS) return;
    log::detail(
        fmt::format("{} are mapped writable, because this driver cannot map them read-only: {}",
                    what, CallResult<CUresult>::describe(result)));
    allow_writing(begin, bytes, what);
  }

  void allow_writing(CUdeviceptr begin, uint64_t bytes, const std::string& what) const {
    AWEX_CHECK(allow(begin, bytes, device_, CU_MEM_ACCESS_FLAGS_PROT_READWRITE),
               "make {} accessible (cuMemSetAccess)", what);
  }

  int device_;
  MappedAccess access_;
  ReservedAddresses addresses_;
  std::vector<std::optional<MemoryMapping>> mappings_;  ///< By chunk.
};

void require_attribute(CUdevice_attribute attribute, int device, const std::string& device_name,
                       const char* feature, const char* hint) {
  int value = 0;
  AWEX_CHECK(cuDeviceGetAttribute(&value, attribute, device), "ask gpu {} ({}) for {}", device,
             device_name, feature);
  if (value == 0) {
    throw runtime_error(
        fmt::format("gpu {} ({}) does not support {}", device, device_name, feature), hint);
  }
}

}  // namespace

CudaMemorySource inspect_cuda_memory(int device, const std::string& device_name) {
  require_attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device, device_name,
                    "virtual memory management",
                    "awex-colocate needs a data-center GPU of compute capability 8.0 or newer on "
                    "Linux; --backend host tries the cycle without a GPU");
  require_attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device,
                    device_name, "export of memory as POSIX file descriptors",
                    "this driver or virtual GPU cannot share memory between processes; use a bare "
                    "GPU, or --backend host to try the cycle without one");
  const auto properties = exportable_memory(device);
  size_t granularity = 0;
  AWEX_CHECK(
      cuMemGetAllocationGranularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
      "learn the allocation granularity of gpu {} ({})", device, device_name);
  return {device, granularity};
}

std::unique_ptr<OwnedChunks> make_cuda_chunks(const CudaMemorySource& source, std::string name,
                                              uint64_t bytes) {
  return std::make_unique<CudaOwnedChunks>(
      source,
      checked_chunking(source, {std::move(name), bytes, bytes == 0 ? 0 : chunk_bytes_for(bytes)}));
}

std::unique_ptr<MappedChunks> make_cuda_mapping(const CudaMemorySource& source, std::string name,
                                                uint64_t bytes, uint64_t chunk_bytes,
                                                MappedAccess access) {
  return std::make_unique<CudaMappedChunks>(
      source, checked_chunking(source, {std::move(name), bytes, chunk_bytes}), access);
}

bool reaches_device(int device, const DeviceIdentity& other) {
  int count = 0;
  AWEX_CHECK(cudaGetDeviceCount(&count), "count the GPUs");
  for (int index = 0; index < count; ++index) {
    CUuuid uuid{};
    AWEX_CHECK(cuDeviceGetUuid(&uuid, index), "learn which gpu {} is", index);
    if (std::memcmp(uuid.bytes, other.uuid.data(), other.uuid.size()) != 0) continue;
    if (index == device) return true;
    int can_access = 0;
    AWEX_CHECK(cudaDeviceCanAccessPeer(&can_access, device, index),
               "learn whether gpu {} reaches gpu {}", device, index);
    return can_access != 0;
  }
  return false;
}

}  // namespace awex
