#include "serve/memory_json.hpp"

#include "base/json_values.hpp"

namespace awex {

Json memory_json(const MemoryReport& memory) {
  Json tags = Json::array();
  for (const auto& entry : memory.by_role_and_tag) {
    tags.push_back({{"role", entry.role},
                    {"tag", entry.tag},
                    {"device_peak_bytes", entry.device_peak_bytes},
                    {"host_pinned_bytes", entry.host_pinned_bytes}});
  }
  return {{"device_peak_bytes", value_or_null(memory.device_peak_bytes)},
          {"host_pinned_bytes", memory.host_pinned_bytes},
          {"leaked_bytes", value_or_null(memory.leaked_bytes)},
          {"by_role_and_tag", tags}};
}

}  // namespace awex
