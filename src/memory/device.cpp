#include "memory/device.hpp"

namespace awex {

const char* backend_name(BackendKind kind) {
  switch (kind) {
    case BackendKind::kHost:
      return "host";
    case BackendKind::kCuda:
      return "cuda";
  }
  return "unknown";
}

}  // namespace awex
