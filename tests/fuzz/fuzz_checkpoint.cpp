// Whatever the files of a checkpoint's directory hold, it is refused as a wrong request, or every
// tensor can be read: index and files, stacked experts, fp8 with its scales, a head beside tied
// embeddings. Its identity is then the same each time.
//
// An input is config.json, the index (none where it is empty) and the headers of up to three files,
// with kBreak between. The harness adds the header's length and the data that the header asks for.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/untrusted.hpp"
#include "model/checkpoint.hpp"
#include "model/checkpoint_files.hpp"
#include "model/checkpoint_identity.hpp"

namespace {

using namespace awex;
namespace fs = std::filesystem;

constexpr std::string_view kBreak = "\n---\n";
constexpr size_t kMostFiles = 3;
constexpr uint64_t kMostBytes = 1U << 16;  ///< Of a file's data, and of a model that is read.

std::vector<std::string_view> parts_of(std::string_view text) {
  std::vector<std::string_view> parts;
  while (parts.size() < 2 + kMostFiles) {
    const auto end = text.find(kBreak);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + kBreak.size());
  }
  return parts;
}

/// The largest number of a header, which in a valid one is where its data end.
uint64_t largest_number(std::string_view header) {
  uint64_t largest = 0;
  uint64_t number = 0;
  for (const char c : header) {
    number = c >= '0' && c <= '9'
                 ? std::min(10 * number + static_cast<uint64_t>(c - '0'), kMostBytes)
                 : 0;
    largest = std::max(largest, number);
  }
  return largest;
}

void write_file(const fs::path& path, std::string_view header) {
  std::ofstream out(path, std::ios::binary);
  const uint64_t length = header.size();
  out.write(reinterpret_cast<const char*>(&length), sizeof(length));
  out << header;
  for (uint64_t i = 0, end = largest_number(header); i < end; ++i)
    out.put(static_cast<char>(i * 37));
}

void write_directory(const fs::path& directory, std::string_view text) {
  fs::remove_all(directory);
  fs::create_directory(directory);
  const auto parts = parts_of(text);
  std::ofstream(directory / kConfigFile, std::ios::binary) << parts[0];
  const bool has_index = parts.size() > 1 && !parts[1].empty();
  if (has_index) std::ofstream(directory / kIndexFile, std::ios::binary) << parts[1];
  for (size_t i = 2; i < parts.size(); ++i) {
    const auto shard = std::string(1, static_cast<char>('a' + i - 2)) + ".safetensors";
    write_file(directory / (has_index || i > 2 ? shard : kSingleFile), parts[i]);
  }
}

void check(const fs::path& directory) {
  const auto source = open_checkpoint(directory, std::nullopt);
  static ThreadPool threads(1);
  const auto identity = checkpoint_identity(directory, source->files(), threads);
  fuzz::require(identity == checkpoint_identity(directory, source->files(), threads),
                "an identity stays the same");
  if (source->catalogue().bytes() > kMostBytes) return;
  fuzz::require(digest_source(*source, threads) == digest_source(*source, threads),
                "the same bytes are read each time");
  (void)source->remarks();
}

const fs::path& own_directory() {
  static const fs::path directory =
      fs::temp_directory_path() / ("awex-fuzz-" + std::to_string(::getpid()));
  static const int at_end = std::atexit([] { fs::remove_all(own_directory()); });
  (void)at_end;
  return directory;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  write_directory(own_directory(), {reinterpret_cast<const char*>(data), size});
  fuzz::only_request_errors([&] { check(own_directory()); });
  return 0;
}
