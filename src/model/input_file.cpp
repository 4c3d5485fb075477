#include "model/input_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/error.hpp"
#include "base/units.hpp"
#include "base/work_progress.hpp"
#include "model/digest.hpp"

namespace awex {
namespace {

/// Fetching that was interrupted leaves such links in a Hugging Face cache.
void refuse_dangling_link(const std::filesystem::path& path) {
  std::error_code failure;
  const auto target = std::filesystem::read_symlink(path, failure);
  if (failure) return;
  throw request_error(
      fmt::format("cannot read {}: it is a symbolic link to {}, which is not there", path.string(),
                  target.string()),
      "fetch the file again, or mount what the link points to (in containers, too)");
}

}  // namespace

InputFile::InputFile(const std::filesystem::path& path) : name_(path.string()) {
  // Without O_NONBLOCK, opening a FIFO would wait for a writer that may never come.
  fd_ = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd_.valid() && (errno == EMFILE || errno == ENFILE)) {
    throw errno_error("read " + name_, "open", errno);
  }
  if (!fd_.valid()) {
    const int failure = errno;
    if (failure == ENOENT) refuse_dangling_link(path);
    throw request_error(fmt::format("cannot read {}: {}", name_, std::strerror(failure)),
                        "see whether it is there, and whether this user may read it (ls -l)");
  }
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) throw errno_error("stat " + name_, "fstat", errno);
  if (!S_ISREG(status.st_mode)) {
    throw request_error(name_ + " is not a regular file",
                        "name a plain file, no directory, pipe or device");
  }
  bytes_ = static_cast<uint64_t>(status.st_size);
}

void InputFile::read(uint64_t offset, std::span<std::byte> out) const {
  // Small enough that slow storage shows progress often.
  constexpr size_t kMostAtOnce = 1U << 20;
  while (!out.empty()) {
    const work::FileRead reading(name_, bytes_);
    const auto got = ::pread(fd_.get(), out.data(), std::min(out.size(), kMostAtOnce),
                             static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw errno_error(fmt::format("read {} bytes at {} of {}", out.size(), offset, name_),
                        "pread", errno);
    }
    if (got == 0) {
      throw runtime_error(fmt::format("{} had {} bytes when it was opened and ends at {} now",
                                      name_, bytes_, offset),
                          "do not write to a checkpoint while a job reads it");
    }
    work::advance(static_cast<uint64_t>(got));
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
}

uint64_t hash_of_part(uint64_t offset, std::span<const std::byte> bytes) {
  static const uint64_t key = tensor_key("checkpoint");
  return digest_elements(key, 1, offset, bytes);
}

void refuse_lfs_pointer(const InputFile& file) {
  constexpr std::string_view kBeginning = "version https://git-lfs.github.com/spec/";
  std::array<char, kBeginning.size()> first{};
  if (file.bytes() < first.size()) return;
  file.read(0, std::as_writable_bytes(std::span(first)));
  if (std::string_view(first.data(), first.size()) != kBeginning) return;
  const auto directory = std::filesystem::path(file.name()).parent_path().string();
  throw request_error(fmt::format("{} is a git-lfs pointer of {}, not the file itself", file.name(),
                                  format_bytes(file.bytes())),
                      fmt::format("fetch the files: git lfs install && git -C {} lfs pull",
                                  directory.empty() ? "." : directory));
}

std::string read_text(const std::filesystem::path& path, uint64_t max_bytes) {
  const InputFile file(path);
  refuse_lfs_pointer(file);
  if (file.bytes() > max_bytes) {
    throw request_error(fmt::format("{} has {}; such a file has at most {}", file.name(),
                                    format_bytes(file.bytes()), format_bytes(max_bytes)));
  }
  std::string text(file.bytes(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace awex
