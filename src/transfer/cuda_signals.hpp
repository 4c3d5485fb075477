#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// The launches behind transfer/peer_exchange.hpp, in terms that nvcc and the host compiler share.

namespace awex::cuda {

/// A number in device memory by which one device tells another how far it is. It only grows, but
/// wraps around.
struct Signal {
  uint32_t* at = nullptr;
  uint32_t value = 0;  ///< On top of a launch's base.
};

/// Sets `count` signals, of this or of other devices, behind all work of `stream`: who sees one
/// sees what that work has stored. Signals (none are allowed) lie in device memory. Returns the
/// launch's result.
cudaError_t launch_set_signals(const Signal* signals, uint32_t count, uint32_t base,
                               cudaStream_t stream);

/// Holds `stream` back until `count` signals of this device have come to their values or further,
/// at which one small block looks.
cudaError_t launch_await_signals(const Signal* signals, uint32_t count, uint32_t base,
                                 cudaStream_t stream);

}  // namespace awex::cuda
