#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace awex {

/// A small file's bytes from its start to its end, or the first `most`; nothing, and errno says
/// why, where it cannot be read. Where the descriptor stands does not matter, and stays.
[[nodiscard]] std::optional<std::string> read_from_start(int fd, size_t most);
/// Writes all of `bytes` from a file's start on; false, and errno says why, where that fails.
[[nodiscard]] bool write_from_start(int fd, std::string_view bytes);

}  // namespace awex
