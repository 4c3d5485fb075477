#pragma once

#include <string>

#include "base/wait.hpp"
#include "cli/moving_line.hpp"
#include "serve/protocol.hpp"

namespace awex {

/// Tells a client's user on stderr what the job does for it: one moving line on a terminal; a line
/// for each phase when verbose; in a log one where others come first, and one for what takes long.
class ClientProgress {
 public:
  /// `command`: as its user calls it.
  explicit ClientProgress(std::string command);

  void hear(const Event& event);
  /// To be called from time to time.
  void tick();

 private:
  void enter(const std::string& doing);

  std::string command_;
  std::string doing_;
  Stopwatch since_;         ///< It does that.
  double next_line_s_ = 0;  ///< Of `since_`, when the user is told again.
  MovingLine line_;
};

}  // namespace awex
