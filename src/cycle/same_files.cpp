#include "cycle/same_files.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/fixed_text.hpp"
#include "base/thread_pool.hpp"
#include "base/work_progress.hpp"
#include "model/checkpoint_identity.hpp"
#include "model/digest.hpp"

namespace awex {
namespace {

constexpr size_t kReaders = 16;  ///< Storage is waited for, not the processor.

/// A FileIdentity as plain data; without a name where a rank has fewer files than others.
struct FileRecord {
  FixedText<128> name;
  uint64_t bytes;
  uint64_t head;
  uint64_t sample;

  bool operator==(const FileRecord&) const = default;
};
static_assert(std::is_trivially_copyable_v<FileRecord>);

/// What the storage holds back may outlive this call: all that is read into belongs to the work.
std::vector<FileRecord> own_files(Job& job, const ModelName& model,
                                  const std::shared_ptr<const WeightSource>& source) {
  if (source->files().empty()) return {};
  const auto records = std::make_shared<std::vector<FileRecord>>();
  const auto read = [records, directory = model.name(), source] {
    ThreadPool readers(kReaders);
    for (const auto& file : checkpoint_identity(directory, source->files(), readers)) {
      records->push_back({fixed_text<128>(file.name), file.bytes, file.head, file.sample});
    }
  };
  work::attend(read, {"comparing the checkpoints", 0, 0}, job.deadline().allowed(), job);
  return std::move(*records);
}

uint64_t fingerprint_of(const std::vector<FileRecord>& files) {
  uint64_t fingerprint = mix64(files.size());
  for (const auto& file : files) {
    for (const uint64_t part :
         {tensor_key(text_of(file.name)), file.bytes, file.head, file.sample}) {
      fingerprint = mix64(fingerprint ^ part);
    }
  }
  return fingerprint;
}

std::string difference(const FileRecord& one, const FileRecord& other) {
  if (one.name != other.name) {
    const auto name = [](const FileRecord& file) {
      const auto text = text_of(file.name);
      return text.empty() ? std::string("no further file") : text;
    };
    return fmt::format("the first has {}, the second {}", name(one), name(other));
  }
  const auto name = text_of(one.name);
  if (one.bytes != other.bytes) {
    return fmt::format("{} has {} and {} bytes", name, one.bytes, other.bytes);
  }
  return fmt::format("{} has the same size and other {}", name,
                     one.head != other.head ? "text or header" : "weights");
}

/// Names the file and the ranks: those with the fingerprint of most, and one that has another.
[[noreturn]] void refuse(Job& job, std::vector<FileRecord> mine,
                         const std::vector<uint64_t>& fingerprints) {
  uint64_t most = mine.size();
  job.all_reduce_max({&most, 1}, "the number of files");
  mine.resize(most);
  const auto bytes = job.all_gather(std::as_bytes(std::span(mine)), "the files of all ranks");
  std::vector<FileRecord> all(bytes.size() / sizeof(FileRecord));
  std::memcpy(all.data(), bytes.data(), bytes.size());
  const auto votes = [&](uint64_t fingerprint) {
    return std::count(fingerprints.begin(), fingerprints.end(), fingerprint);
  };
  const auto usual = std::max_element(fingerprints.begin(), fingerprints.end(),
                                      [&](auto a, auto b) { return votes(a) < votes(b); });
  const auto other =
      std::find_if(fingerprints.begin(), fingerprints.end(), [&](auto f) { return f != *usual; });
  auto first = static_cast<size_t>(usual - fingerprints.begin());
  auto second = static_cast<size_t>(other - fingerprints.begin());
  if (second < first) std::swap(first, second);
  const auto files_of = [&](size_t rank) { return std::span(all).subspan(rank * most, most); };
  const auto [a, b] =
      std::mismatch(files_of(first).begin(), files_of(first).end(), files_of(second).begin());
  job.fail_together(request_error(
      fmt::format("rank {} and rank {} read different checkpoints: {}", first, second,
                  difference(*a, *b)),
      "give every rank the same files: one shared directory, or copies compared by sha256sum"));
}

}  // namespace

uint64_t check_same_files(Job& job, const ModelName& model,
                          const std::shared_ptr<const WeightSource>& source) {
  std::vector<FileRecord> mine;
  job.do_and_agree([&] { mine = own_files(job, model, source); });
  const uint64_t fingerprint = fingerprint_of(mine);
  const auto all = job.all_gather_value(fingerprint, "the fingerprints of all checkpoints");
  const bool agree = std::all_of(all.begin(), all.end(), [&](auto f) { return f == all[0]; });
  if (!agree) refuse(job, std::move(mine), all);
  return fingerprint;
}

}  // namespace awex
