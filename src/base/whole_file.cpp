#include "base/whole_file.hpp"

#include <unistd.h>

#include <cerrno>

namespace awex {

std::optional<std::string> read_from_start(int fd, size_t most) {
  std::string text(most, '\0');
  size_t done = 0;
  while (done < most) {
    const auto count = ::pread(fd, text.data() + done, most - done, static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return std::nullopt;
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  text.resize(done);
  return text;
}

bool write_from_start(int fd, std::string_view bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const auto count =
        ::pwrite(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

}  // namespace awex
