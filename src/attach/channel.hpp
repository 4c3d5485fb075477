#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.hpp"
#include "base/wait.hpp"

namespace awex::attach {

/// Of a frame's text.
inline constexpr size_t kLongestFrame = 64 << 20;
/// Descriptors that travel with one frame.
inline constexpr size_t kMostFds = 128;

/// A text with the descriptors that came along.
struct Frame {
  std::string text;
  std::vector<UniqueFd> fds;
};

/// One end of a connection between a rank and an engine's library: a stream socket, whose frames
/// are a length (4 bytes, little endian), the number of descriptors (4 bytes) and a text;
/// descriptors travel with the frame's first byte (SCM_RIGHTS). What the other end sends is not
/// trusted: a frame that is too long, or has other descriptors than it says, is an error after
/// which nothing more is read: it may still be told of, and then the connection is to be ended. Not
/// thread safe, but one thread may send while another receives.
class Channel {
 public:
  /// Takes a connected socket and makes it non-blocking.
  explicit Channel(UniqueFd socket);

  [[nodiscard]] int fd() const { return socket_.get(); }

  /// Sends a frame. The descriptors stay the caller's. Throws Error(kPeerLost) when the other end
  /// has gone, Error(kDeadline) and what the monitor throws.
  void send(const std::string& text, std::span<const int> fds, const Deadline& deadline,
            WaitMonitor& monitor);
  /// The next frame, if all of it is there; does not wait. Throws Error(kPeerLost) when the other
  /// end has gone and nothing is left to read, and request errors for what is no frame.
  [[nodiscard]] std::optional<Frame> receive();
  /// Whether the other end has gone, maybe with something left to read.
  [[nodiscard]] bool has_ended() const;
  /// Sleeps until something may be there to read, or for `longest`.
  void wait_readable(Seconds longest) const;

 private:
  struct Sending {
    std::string_view head;
    std::string_view text;
    std::span<const int> fds;
    size_t done = 0;  ///< Bytes of both.
  };
  [[nodiscard]] bool send_some(Sending& sending) const;
  [[nodiscard]] bool fill(std::string& text, size_t bytes);
  void take_fds(msghdr& message);
  void check_head() const;
  void check_fds() const;

  UniqueFd socket_;
  bool broken_ = false;  ///< What has come is no frame.
  std::string head_;     ///< What has come of the next frame,
  std::string text_;
  std::vector<UniqueFd> fds_;
};

}  // namespace awex::attach
