#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.hpp"
#include "model/dtype.hpp"
#include "model/input_file.hpp"

/// The safetensors format (huggingface/safetensors, README): 8 bytes little-endian header length N;
/// N bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}; then the tensors' bytes, to
/// which the offsets refer, without gaps.

namespace awex {

/// A tensor in a file.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kBf16;
  std::vector<uint64_t> shape;
  uint64_t offset_bytes = 0;  ///< From the start of the file.
  uint64_t bytes = 0;
  /// The name of a dtype of the format that none of DType is ("I64"), and then `dtype` says
  /// nothing. Nothing here reads such elements, but files may hold them beside those of the model.
  std::string other_dtype{};

  [[nodiscard]] bool has_known_dtype() const { return other_dtype.empty(); }
  /// The dtype's name in the file.
  [[nodiscard]] std::string_view dtype_name() const {
    return has_known_dtype() ? awex::dtype_name(dtype) : other_dtype;
  }
  [[nodiscard]] uint64_t element_bytes() const;
};

/// The length of the header's JSON that the first 8 bytes of a file of `file_bytes` announce.
/// Throws a request error when the file is too short for it, or it is larger than the format
/// allows.
[[nodiscard]] uint64_t safetensors_header_length(std::span<const std::byte> first_bytes,
                                                 uint64_t file_bytes, const std::string& file);

/// The tensors of a header, in the order of their data. `header` is the JSON alone, of a file of
/// `file_bytes` in all. Throws a request error that names `file` and the tensor unless every tensor
/// has a known dtype, a shape that matches its bytes, and the tensors' bytes fill the file exactly.
[[nodiscard]] std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view header,
                                                                     uint64_t file_bytes,
                                                                     const std::string& file);

/// A safetensors file open for reading; its header is valid. Safe to read from several threads.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  [[nodiscard]] const InputFile& file() const { return file_; }
  [[nodiscard]] const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  /// All before the first tensor, and its hash.
  [[nodiscard]] uint64_t head_bytes() const { return head_bytes_; }
  [[nodiscard]] uint64_t head_hash() const { return head_hash_; }

 private:
  InputFile file_;
  uint64_t head_bytes_ = 0;
  uint64_t head_hash_ = 0;
  std::vector<SafetensorsEntry> entries_;
};

/// Writes one safetensors file. The header is there from the start; every tensor's bytes may come
/// in any order and from several threads.
class SafetensorsWriter {
 public:
  /// Creates the file, which must not exist. Offsets and sizes of `tensors` are filled in here.
  /// Throws a run-time error, as all its functions do, when the disk refuses.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsEntry> tensors);

  /// Writes bytes of tensor `index` from its byte `offset_bytes` on.
  void write(size_t index, uint64_t offset_bytes, std::span<const std::byte> bytes) const;
  /// Waits until the disk has everything.
  void flush() const;

 private:
  void write_at(uint64_t offset, std::span<const std::byte> bytes) const;

  std::string name_;
  UniqueFd fd_;
  std::vector<SafetensorsEntry> tensors_;
};

}  // namespace awex
