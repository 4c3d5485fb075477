#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>

#include "awex_colocate.h"

namespace awex::test {

awex_attach_options attach_options(std::string&& job, awex_role role) = delete;  // is referred to
inline awex_attach_options attach_options(const std::string& job, awex_role role) {
  awex_attach_options options{};
  options.struct_size = sizeof(options);
  options.job = job.c_str();
  options.role = role;
  options.name = "test 1.0";
  options.timeout_s = 30;
  return options;
}

/// An engine that is attached by the C interface.
class AttachedEngine {
 public:
  AttachedEngine(const std::filesystem::path& job, awex_role role, int device = 0) {
    const auto directory = job.string();
    auto options = attach_options(directory, role);
    options.device = device;
    if (awex_attach(&options, &engine_) != AWEX_OK) throw std::runtime_error(awex_error());
  }
  AttachedEngine(const AttachedEngine&) = delete;
  AttachedEngine& operator=(const AttachedEngine&) = delete;
  AttachedEngine(AttachedEngine&&) = delete;
  AttachedEngine& operator=(AttachedEngine&&) = delete;
  ~AttachedEngine() { awex_detach(engine_); }

  [[nodiscard]] awex_engine* get() const { return engine_; }
  void detach() { awex_detach(std::exchange(engine_, nullptr)); }
  [[nodiscard]] awex_memory_info memory(awex_tag tag) const {
    awex_memory_info info{};
    if (awex_memory(engine_, tag, &info) != AWEX_OK) throw std::runtime_error(awex_error());
    return info;
  }
  [[nodiscard]] std::byte* data(awex_tag tag) const {
    return static_cast<std::byte*>(memory(tag).address);
  }
  [[nodiscard]] bool is_mapped(awex_tag tag) const { return memory(tag).is_mapped != 0; }

 private:
  awex_engine* engine_ = nullptr;
};

}  // namespace awex::test
