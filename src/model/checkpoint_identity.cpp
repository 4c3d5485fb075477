#include "model/checkpoint_identity.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <span>

#include "base/error.hpp"
#include "model/checkpoint_files.hpp"
#include "model/digest.hpp"
#include "model/input_file.hpp"
#include "model/safetensors.hpp"

namespace awex {
namespace {

constexpr uint64_t kWholeBytes = 64ULL << 20;
constexpr uint64_t kReadBytes = 1ULL << 20;
constexpr uint64_t kBlockBytes = 4096;
constexpr size_t kBlocks = 1024;  ///< Of all files together, about.
constexpr uint64_t kMaxJsonBytes = 1ULL << 30;

uint64_t hash_of(uint64_t offset, std::span<const std::byte> bytes) {
  return digest_elements(tensor_key("checkpoint"), 1, offset, bytes);
}

uint64_t hash_of_part(const InputFile& file, uint64_t offset, uint64_t bytes) {
  std::vector<std::byte> part(bytes);
  file.read(offset, part);
  return hash_of(offset, part);
}

FileIdentity json_identity(const std::filesystem::path& directory, const char* name) {
  const auto text = read_text(directory / name, kMaxJsonBytes);
  return {name, text.size(), hash_of(0, std::as_bytes(std::span(text))), 0};
}

/// Those that are there: shards that hold nothing needed may be missing.
std::vector<std::string> weight_files(const std::filesystem::path& directory) {
  auto names = list_checkpoint_files(directory).files;
  std::erase_if(names,
                [&](const auto& name) { return !std::filesystem::exists(directory / name); });
  std::sort(names.begin(), names.end());
  return names;
}

/// Null for a file that is no safetensors file: one that holds nothing needed may be anything.
std::unique_ptr<SafetensorsFile> open_if_valid(const std::filesystem::path& path) {
  try {
    return std::make_unique<SafetensorsFile>(path);
  } catch (const Error&) {
    return nullptr;
  }
}

/// All before the first tensor.
uint64_t head_bytes(const SafetensorsFile& file) {
  const auto& entries = file.entries();
  return entries.empty() ? file.file().bytes() : entries.front().offset_bytes;
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
    for (uint64_t at = head_bytes(file); at < all; at += kReadBytes) {
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
                                              ThreadPool& threads) {
  std::vector<FileIdentity> identities;
  identities.push_back(json_identity(directory, kConfigFile));
  if (std::filesystem::exists(directory / kIndexFile)) {
    identities.push_back(json_identity(directory, kIndexFile));
  }
  const size_t first = identities.size();
  const auto names = weight_files(directory);
  std::vector<std::unique_ptr<SafetensorsFile>> files(names.size());
  std::vector<uint64_t> heads(names.size());
  threads.for_each(names.size(), [&](size_t i) {
    files[i] = open_if_valid(directory / names[i]);
    if (files[i]) heads[i] = hash_of_part(files[i]->file(), 0, head_bytes(*files[i]));
  });
  std::vector<Sample> samples;
  const size_t blocks = std::max<size_t>(4, kBlocks / std::max<size_t>(1, files.size()));
  for (size_t i = 0; i < files.size(); ++i) {
    if (!files[i]) {
      identities.push_back({names[i], std::filesystem::file_size(directory / names[i]), 0, 0});
      continue;
    }
    identities.push_back({names[i], files[i]->file().bytes(), heads[i], 0});
    add_samples(*files[i], i, blocks, samples);
  }
  std::vector<std::atomic<uint64_t>> sums(files.size());
  threads.for_each(samples.size(), [&](size_t i) {
    const auto& [file, offset, bytes] = samples[i];
    sums[file] += hash_of_part(files[file]->file(), offset, bytes);
  });
  for (size_t i = 0; i < files.size(); ++i) identities[first + i].sample = sums[i];
  return identities;
}

}  // namespace awex
