#pragma once

#include <cstdint>
#include <string>

namespace awex {

/// The one line on a terminal's stderr that moves with the work; nothing where stderr is no
/// terminal, or more or less is to be said.
class MovingLine {
 public:
  /// `speaks`: whether this process tells anything at all.
  explicit MovingLine(bool speaks);
  MovingLine(const MovingLine&) = delete;
  MovingLine& operator=(const MovingLine&) = delete;
  MovingLine(MovingLine&&) = delete;
  MovingLine& operator=(MovingLine&&) = delete;
  ~MovingLine() { clear(); }

  /// Whether `draw` draws.
  [[nodiscard]] bool moves() const { return moves_; }
  /// Draws `text` in the place of what stood there.
  void draw(const std::string& text);
  /// Takes the line away, before anything else is written.
  void clear();

 private:
  bool moves_;
  bool drawn_ = false;
};

/// "transfer all weights"; a tag may be empty.
[[nodiscard]] std::string phase_subject(const std::string& phase, const std::string& role,
                                        const std::string& tag);

/// "1.23 s, 8.04 GB, 6.54 GB/s"; the time alone of a phase that moves nothing.
[[nodiscard]] std::string phase_outcome(double seconds, uint64_t bytes);

}  // namespace awex
