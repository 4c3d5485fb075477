#include "model/checkpoint_identity.hpp"

#include <algorithm>
#include <atomic>
#include <span>

#include "model/checkpoint_files.hpp"
#include "model/input_file.hpp"

namespace awex {
namespace {

constexpr uint64_t kWholeBytes = 64ULL << 20;
constexpr uint64_t kReadBytes = 1ULL << 20;
constexpr uint64_t kBlockBytes = 4096;
constexpr size_t kBlocks = 1024;  ///< Of all files together, about.
constexpr uint64_t kMaxJsonBytes = 1ULL << 30;

FileIdentity json_identity(const std::filesystem::path& directory, const char* name) {
  const auto text = read_text(directory / name, kMaxJsonBytes);
  return {name, text.size(), hash_of_part(0, std::as_bytes(std::span(text))), 0};
}

/// A part of a file that is hashed.
struct Sample {
  size_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

void add_samples(const SafetensorsFile& file, size_t number, size_t blocks,
                 std::vector<Sample>& samples) {
  const auto& entries = file.entries();
  const uint64_t all = file.file().bytes();
  if (all <= kWholeBytes) {
    for (uint64_t at = file.head_bytes(); at < all; at += kReadBytes) {
      samples.push_back({number, at, std::min(kReadBytes, all - at)});
    }
    return;
  }
  const size_t step = std::max<size_t>(1, entries.size() / blocks);
  for (size_t i = 0; i < entries.size(); i += step) {
    const uint64_t bytes = std::min(entries[i].bytes, kBlockBytes);
    const uint64_t middle = (entries[i].bytes - bytes) / 2;
    if (bytes > 0) samples.push_back({number, entries[i].offset_bytes + middle, bytes});
  }
}

}  // namespace

std::vector<FileIdentity> checkpoint_identity(const std::filesystem::path& directory,
                                              const std::vector<SafetensorsFile>& files,
                                              ThreadPool& threads) {
  std::vector<FileIdentity> identities;
  identities.push_back(json_identity(directory, kConfigFile));
  if (std::filesystem::exists(directory / kIndexFile)) {
    identities.push_back(json_identity(directory, kIndexFile));
  }
  const size_t first = identities.size();
  std::vector<Sample> samples;
  const size_t blocks = std::max<size_t>(4, kBlocks / std::max<size_t>(1, files.size()));
  for (size_t i = 0; i < files.size(); ++i) {
    const auto name = std::filesystem::path(files[i].file().name()).filename().string();
    identities.push_back({name, files[i].file().bytes(), files[i].head_hash(), 0});
    add_samples(files[i], i, blocks, samples);
  }
  std::vector<std::atomic<uint64_t>> sums(files.size());
  threads.for_each(samples.size(), [&](size_t i) {
    const auto& [file, offset, bytes] = samples[i];
    std::vector<std::byte> part(bytes);
    files[file].file().read(offset, part);
    sums[file] += hash_of_part(offset, part);
  });
  for (size_t i = 0; i < files.size(); ++i) identities[first + i].sample = sums[i];
  return identities;
}

}  // namespace awex
