#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include <atomic>

namespace awex {

/// The address of a driver function as it was in CUDA `version` (10020 is 10.2), null when there is
/// no driver or it is too old. Does not throw.
[[nodiscard]] void* find_driver_function(const char* symbol, unsigned version);

template <class Pointer>
class DriverFunction;

/// A function of the CUDA driver, looked up at its first call, so that the program starts where
/// libcuda.so is missing. Calls return CUDA_ERROR_NOT_FOUND where the driver does not have it.
template <class... Arguments>
class DriverFunction<CUresult (*)(Arguments...)> {
 public:
  constexpr DriverFunction(const char* symbol, unsigned version)
      : symbol_(symbol), version_(version) {}

  CUresult operator()(Arguments... arguments) const {
    using Pointer = CUresult (*)(Arguments...);
    void* address = address_.load(std::memory_order_acquire);
    if (address == nullptr) {
      address = find_driver_function(symbol_, version_);
      if (address == nullptr) return CUDA_ERROR_NOT_FOUND;
      address_.store(address, std::memory_order_release);
    }
    return reinterpret_cast<Pointer>(address)(arguments...);
  }

 private:
  const char* symbol_;
  unsigned version_;
  mutable std::atomic<void*> address_{nullptr};
};

// They have the driver's own names and hide its declarations inside this namespace, so that calls
// and error messages read like its documentation.
inline constinit const DriverFunction<PFN_cuGetErrorName_v6000> cuGetErrorName{"cuGetErrorName",
                                                                               6000};
inline constinit const DriverFunction<PFN_cuGetErrorString_v6000> cuGetErrorString{
    "cuGetErrorString", 6000};
inline constinit const DriverFunction<PFN_cuDeviceGetAttribute_v2000> cuDeviceGetAttribute{
    "cuDeviceGetAttribute", 2000};
inline constinit const DriverFunction<PFN_cuDeviceGetUuid_v11040> cuDeviceGetUuid{"cuDeviceGetUuid",
                                                                                  11040};
inline constinit const DriverFunction<PFN_cuCtxGetCurrent_v4000> cuCtxGetCurrent{"cuCtxGetCurrent",
                                                                                 4000};
inline constinit const DriverFunction<PFN_cuCtxSetCurrent_v4000> cuCtxSetCurrent{"cuCtxSetCurrent",
                                                                                 4000};
inline constinit const DriverFunction<PFN_cuMemGetAllocationGranularity_v10020>
    cuMemGetAllocationGranularity{"cuMemGetAllocationGranularity", 10020};
inline constinit const DriverFunction<PFN_cuMemGetAddressRange_v3020> cuMemGetAddressRange{
    "cuMemGetAddressRange", 3020};
inline constinit const DriverFunction<PFN_cuMemAddressReserve_v10020> cuMemAddressReserve{
    "cuMemAddressReserve", 10020};
inline constinit const DriverFunction<PFN_cuMemAddressFree_v10020> cuMemAddressFree{
    "cuMemAddressFree", 10020};
inline constinit const DriverFunction<PFN_cuMemCreate_v10020> cuMemCreate{"cuMemCreate", 10020};
inline constinit const DriverFunction<PFN_cuMemRelease_v10020> cuMemRelease{"cuMemRelease", 10020};
inline constinit const DriverFunction<PFN_cuMemMap_v10020> cuMemMap{"cuMemMap", 10020};
inline constinit const DriverFunction<PFN_cuMemUnmap_v10020> cuMemUnmap{"cuMemUnmap", 10020};
inline constinit const DriverFunction<PFN_cuMemSetAccess_v10020> cuMemSetAccess{"cuMemSetAccess",
                                                                                10020};
inline constinit const DriverFunction<PFN_cuMemRetainAllocationHandle_v11000>
    cuMemRetainAllocationHandle{"cuMemRetainAllocationHandle", 11000};
inline constinit const DriverFunction<PFN_cuMemExportToShareableHandle_v10020>
    cuMemExportToShareableHandle{"cuMemExportToShareableHandle", 10020};
inline constinit const DriverFunction<PFN_cuMemImportFromShareableHandle_v10020>
    cuMemImportFromShareableHandle{"cuMemImportFromShareableHandle", 10020};

}  // namespace awex
