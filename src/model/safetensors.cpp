#include "model/safetensors.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>

#include "base/checked.hpp"
#include "model/digest.hpp"
#include "model/json_input.hpp"

namespace awex {
namespace {

using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  ///< The public implementation's limit.
constexpr uint64_t kDataAlignment = 8;
constexpr const char* kMetadata = "__metadata__";

/// A dtype of the format that weights do not have, and the bytes of an element.
struct OtherDType {
  std::string_view name;
  uint64_t bytes;
};
constexpr std::array<OtherDType, 11> kOtherDTypes{{{"BOOL", 1},
                                                   {"U8", 1},
                                                   {"I8", 1},
                                                   {"F8_E8M0", 1},
                                                   {"U16", 2},
                                                   {"I16", 2},
                                                   {"U32", 4},
                                                   {"I32", 4},
                                                   {"U64", 8},
                                                   {"I64", 8},
                                                   {"F64", 8}}};

const OtherDType* other_dtype(std::string_view name) {
  const auto* found = std::find_if(kOtherDTypes.begin(), kOtherDTypes.end(),
                                   [&](const auto& other) { return other.name == name; });
  return found == kOtherDTypes.end() ? nullptr : found;
}

/// Reads one tensor's description; errors name file and tensor.
class EntryReader {
 public:
  EntryReader(const std::string& file, const std::string& name) : file_(file), name_(name) {}

  [[nodiscard]] SafetensorsEntry read(const json& description, uint64_t data_begin,
                                      uint64_t data_bytes) const {
    if (!description.is_object()) refuse("has no description: " + shown(description));
    SafetensorsEntry entry;
    entry.name = name_;
    read_dtype(field(description, "dtype"), entry);
    entry.shape = read_numbers(description, "shape");
    const auto offsets = read_numbers(description, "data_offsets");
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes) {
      const bool is_cut_off = offsets.size() == 2 && offsets[1] > data_bytes;
      refuse(fmt::format("has data_offsets {}, which are no range of the file's {} data bytes",
                         shown(description["data_offsets"]), data_bytes),
             is_cut_off ? "the file is damaged: fetch it again" : "");
    }
    entry.offset_bytes = data_begin + offsets[0];
    entry.bytes = offsets[1] - offsets[0];
    check_size(entry);
    return entry;
  }

 private:
  [[noreturn]] void refuse(const std::string& why, const char* hint = "") const {
    throw request_error(fmt::format("{}: tensor {} {}", file_, in_quotes(name_), why), hint)
        .about_tensor(name_);
  }

  [[nodiscard]] const json& field(const json& description, const char* name) const {
    const auto at = description.find(name);
    if (at == description.end()) refuse(fmt::format("has no \"{}\"", name));
    return *at;
  }

  void read_dtype(const json& value, SafetensorsEntry& entry) const {
    const std::string name = value.is_string() ? value.get<std::string>() : "";
    if (const auto dtype = dtype_from_name(name)) {
      entry.dtype = *dtype;
    } else if (other_dtype(name) != nullptr) {
      entry.other_dtype = name;
    } else {
      refuse(fmt::format("has dtype {}; weights are BF16, F16, F32 or F8_E4M3", shown(value)));
    }
  }

  [[nodiscard]] std::vector<uint64_t> read_numbers(const json& description,
                                                   const char* name) const {
    const auto& list = field(description, name);
    std::vector<uint64_t> numbers;
    bool valid = list.is_array();
    for (const auto& number : valid ? list : json::array()) {
      valid = valid && number.is_number_unsigned();
      if (valid) numbers.push_back(number.get<uint64_t>());
    }
    if (!valid) refuse(fmt::format("has \"{}\" {}, no list of whole numbers", name, shown(list)));
    return numbers;
  }

  void check_size(const SafetensorsEntry& entry) const {
    const auto shape = fmt::format("[{}]", fmt::join(entry.shape, ", "));
    uint64_t bytes = entry.element_bytes();
    bool overflow = false;
    for (const auto extent : entry.shape) {
      overflow = overflow || __builtin_mul_overflow(bytes, extent, &bytes);
    }
    if (overflow) refuse(fmt::format("has shape {}, whose bytes do not fit 64 bits", shape));
    if (bytes != entry.bytes) {
      refuse(fmt::format("has {} bytes of data; {} of shape {} has {}", entry.bytes,
                         entry.dtype_name(), shape, bytes));
    }
  }

  const std::string& file_;
  const std::string& name_;
};

void check_metadata(const json& metadata, const std::string& file) {
  const bool valid =
      metadata.is_object() && std::all_of(metadata.begin(), metadata.end(),
                                          [](const json& value) { return value.is_string(); });
  if (!valid) {
    throw request_error(
        fmt::format("{}: \"{}\" is {}, no object of strings", file, kMetadata, shown(metadata)));
  }
}

/// Sorts by place and refuses overlaps and gaps: after this every byte of the file has one meaning.
void check_tiling(std::vector<SafetensorsEntry>& entries, uint64_t data_begin, uint64_t file_bytes,
                  const std::string& file) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.offset_bytes, a.bytes, a.name) < std::tie(b.offset_bytes, b.bytes, b.name);
  });
  uint64_t end = data_begin;
  for (const auto& entry : entries) {
    if (entry.offset_bytes != end) {
      throw request_error(fmt::format("{}: tensor {} begins at data byte {}, but the one before it "
                                      "ends at {}",
                                      file, in_quotes(entry.name), entry.offset_bytes - data_begin,
                                      end - data_begin))
          .about_tensor(entry.name);
    }
    end += entry.bytes;
  }
  if (end != file_bytes) {
    throw request_error(fmt::format("{}: the tensors end at byte {} of {}", file, end, file_bytes),
                        "the file is damaged: fetch it again");
  }
}

std::string make_header(std::vector<SafetensorsEntry>& tensors) {
  json header{{kMetadata, {{"format", "pt"}}}};
  uint64_t end = 0;
  for (auto& tensor : tensors) {
    uint64_t elements = 1;
    for (const auto extent : tensor.shape) elements = checked_mul(elements, extent, "a shape");
    tensor.bytes = checked_mul(elements, element_bytes(tensor.dtype), "a tensor");
    tensor.offset_bytes = end;
    end = checked_add(end, tensor.bytes, "a safetensors file");
    header[tensor.name] = {{"dtype", dtype_name(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {tensor.offset_bytes, end}}};
  }
  auto text = header.dump();
  text.resize(round_up(text.size(), kDataAlignment), ' ');
  return text;
}

}  // namespace

uint64_t SafetensorsEntry::element_bytes() const {
  const auto* other = other_dtype.empty() ? nullptr : awex::other_dtype(other_dtype);
  return other != nullptr ? other->bytes : awex::element_bytes(dtype);
}

uint64_t safetensors_header_length(std::span<const std::byte> first_bytes, uint64_t file_bytes,
                                   const std::string& file) {
  static_assert(std::endian::native == std::endian::little);
  if (file_bytes < kLengthBytes || first_bytes.size() < kLengthBytes) {
    throw request_error(
        fmt::format("{}: {} bytes are too few for a safetensors file", file, file_bytes),
        "the file is damaged: fetch it again");
  }
  uint64_t length = 0;
  std::memcpy(&length, first_bytes.data(), kLengthBytes);
  if (length > kMaxHeaderBytes) {
    throw request_error(
        fmt::format("{}: no safetensors file: it announces a header of {} bytes, the "
                    "format allows {}",
                    file, length, kMaxHeaderBytes),
        "the file is damaged, or something else under this name: fetch it again");
  }
  if (length > file_bytes - kLengthBytes) {
    throw request_error(fmt::format("{}: cut off: it has {} bytes, its header alone {}", file,
                                    file_bytes, length + kLengthBytes),
                        "the file is damaged: fetch it again");
  }
  return length;
}

std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view header, uint64_t file_bytes,
                                                       const std::string& file) {
  const uint64_t data_begin = kLengthBytes + header.size();
  const auto object = parse_json(header, file + " (header)");
  if (!object.is_object()) throw request_error(file + ": the header is no JSON object");
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, description] : object.items()) {
    if (name == kMetadata) {
      check_metadata(description, file);
    } else {
      entries.push_back(
          EntryReader(file, name).read(description, data_begin, file_bytes - data_begin));
    }
  }
  check_tiling(entries, data_begin, file_bytes, file);
  return entries;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  std::array<std::byte, kLengthBytes> first{};
  const auto available = std::min(kLengthBytes, file_.bytes());
  file_.read(0, std::span(first).first(available));
  refuse_lfs_pointer(file_);
  const auto length =
      safetensors_header_length(std::span(first).first(available), file_.bytes(), file_.name());
  std::string header(length, '\0');
  file_.read(kLengthBytes, std::as_writable_bytes(std::span(header)));
  head_bytes_ = kLengthBytes + length;
  head_hash_ =
      hash_of_part(0, first) + hash_of_part(kLengthBytes, std::as_bytes(std::span(header)));
  entries_ = parse_safetensors_header(header, file_.bytes(), file_.name());
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     std::vector<SafetensorsEntry> tensors)
    : name_(path.string()), tensors_(std::move(tensors)) {
  const auto header = make_header(tensors_);
  const uint64_t length = header.size();
  for (auto& tensor : tensors_) tensor.offset_bytes += kLengthBytes + length;
  fd_ = UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!fd_.valid()) throw errno_error("create " + name_, "open", errno);
  write_at(0, std::as_bytes(std::span(&length, 1)));
  write_at(kLengthBytes, std::as_bytes(std::span(header)));
}

void SafetensorsWriter::write(size_t index, uint64_t offset_bytes,
                              std::span<const std::byte> bytes) const {
  write_at(tensors_.at(index).offset_bytes + offset_bytes, bytes);
}

void SafetensorsWriter::flush() const {
  if (::fsync(fd_.get()) != 0) throw errno_error("flush " + name_, "fsync", errno);
}

void SafetensorsWriter::write_at(uint64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const auto written =
        ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      throw errno_error(fmt::format("write {} bytes at {} of {}", bytes.size(), offset, name_),
                        "pwrite", errno);
    }
    offset += static_cast<uint64_t>(written);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

}  // namespace awex
