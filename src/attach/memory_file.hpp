#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "attach/control_page.hpp"
#include "attach/message.hpp"
#include "base/unique_fd.hpp"
#include "memory/host_mapping.hpp"

namespace awex::attach {

/// The rank's control page, in a file in memory that an engine can map and not shorten. The page
/// lives as long as this.
class OwnPage {
 public:
  /// Throws Error(kRuntime).
  OwnPage();
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] ControlPage& page() const { return *page_; }

 private:
  UniqueFd fd_;
  HostMapping mapping_;
  ControlPage* page_;
};

/// What an engine wanted kept, as a file in memory for the one that comes in its place. Throws
/// Error(kRuntime).
[[nodiscard]] UniqueFd file_of_kept(std::string_view bytes);

/// What an engine wants kept, as it came with its message: one file that is long enough, as only a
/// file answers at once. Throws request errors for others.
[[nodiscard]] std::string read_kept(const ToRank& message, const std::vector<UniqueFd>& fds);

}  // namespace awex::attach
