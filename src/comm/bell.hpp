#pragma once

#include "base/fixed_text.hpp"
#include "base/unique_fd.hpp"
#include "base/units.hpp"

namespace awex {

/// By which another process of this host rings. Plain data.
using BellName = FixedText<16>;

/// Wakes a process that sleeps: what the ranks of a host can do for each other at no cost while
/// nothing happens, which waking up to ask MPI cannot. A datagram socket with an abstract address:
/// it has no file, and a ring carries nothing, so that anyone's does no harm. Containers with
/// networks of their own do not hear each other.
class Bell {
 public:
  /// Throws Error(kRuntime).
  Bell();

  [[nodiscard]] const BellName& name() const { return name_; }
  /// Readable once it has rung.
  [[nodiscard]] int fd() const { return socket_.get(); }
  /// Rings another's. One that is gone, or does not listen, hears nothing.
  void ring(const BellName& other) const noexcept;
  /// Sleeps until it has rung since the last time, or a signal comes, or for `longest`. Returns
  /// whether it has rung.
  [[nodiscard]] bool wait(Seconds longest) const;

 private:
  UniqueFd socket_;
  BellName name_{};
};

}  // namespace awex
