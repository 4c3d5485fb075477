#pragma once

#include "attach/control_page.hpp"
#include "base/unique_fd.hpp"
#include "memory/host_mapping.hpp"

namespace awex::attach {

/// The control page of the rank, mapped here.
class MappedPage {
 public:
  /// Throws run-time errors, also for what is no control page.
  explicit MappedPage(const UniqueFd& fd);

  [[nodiscard]] ControlPage& operator*() const {
    return *reinterpret_cast<ControlPage*>(mapping_.data());
  }

 private:
  HostMapping mapping_;
};

}  // namespace awex::attach
