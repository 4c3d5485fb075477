// How near the host kernels come to plain copies of the same bytes.
//
//   host_copies [THREADS [ROUNDS]]      as many threads as processors, 15 rounds
//
// Every set lies in two regions of the host backend's device memory, touched before. A round times
// each way once, with a plain copy directly before it: as many threads of a pool as the kernels
// have, each of which copies one equal share of the set's bytes with one memcpy. A way's ratio is
// the plain copy's time over its own, the median over the rounds: what else the machine does
// changes from second to second and hits both.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "layout/engines.hpp"
#include "memory/device.hpp"
#include "model/digest.hpp"
#include "model/presets.hpp"
#include "plan/plan_copies.hpp"
#include "plan/planner.hpp"
#include "transfer/kernels/kernels.hpp"

namespace awex {
namespace {

constexpr uint64_t kElementBytes = 2;  // bf16
constexpr uint32_t kScaleBlock = 128;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Device memory that is taken, with bytes of no pattern in it.
class Memory {
 public:
  Memory(Device& device, uint64_t bytes) : range_(device.reserve("benchmark", bytes)) {
    range_->take_chunks(0, range_->chunks());
    for (uint64_t at = 0; at + sizeof(uint64_t) <= bytes; at += sizeof(uint64_t)) {
      // Bit 14 of a bf16 is left clear, so that no element is infinite or no number.
      const uint64_t value = mix64(at) & 0xbfffbfffbfffbfffU;
      std::memcpy(range_->data() + at, &value, sizeof(value));
    }
  }
  [[nodiscard]] std::byte* data() const { return range_->data(); }

 private:
  std::unique_ptr<DeviceRange> range_;
};

struct Way {
  std::string name;
  std::function<void()> run;
};

struct Bench {
  Bench(size_t threads, int times)
      : pool(threads),
        device(make_host_device(0, threads)),
        kernels(make_kernels(*device, threads)),
        rounds(times) {}

  void plain_copy(const std::byte* from, std::byte* to, uint64_t bytes) {
    const uint64_t share = ceil_div(bytes, pool.threads());
    pool.for_each(pool.threads(), [&](size_t thread) {
      const uint64_t begin = std::min(bytes, thread * share);
      std::memcpy(to + begin, from + begin, std::min(share, bytes - begin));
    });
  }

  /// Prints a line for each way; `plain` copies the set's `bytes`.
  void measure(const std::string& set, size_t pieces, uint64_t bytes, const Way& plain,
               const std::vector<Way>& ways) const {
    std::vector<double> limit;
    std::vector<std::vector<double>> times(ways.size());
    std::vector<std::vector<double>> ratios(ways.size());
    for (int round = 0; round < rounds; ++round) {
      for (size_t i = 0; i < ways.size(); ++i) {
        limit.push_back(seconds_of(plain.run));
        times[i].push_back(seconds_of(ways[i].run));
        ratios[i].push_back(limit.back() / times[i].back());
      }
    }
    const auto rate = [&](double seconds) { return static_cast<double>(bytes) / seconds / 1e9; };
    const auto print = [&](const std::string& way, const std::vector<double>& taken, double ratio) {
      fmt::print("{:<40} {:>7} {:>6} {:<16} {:>9.1f} {:>7.1f} {:>7.3f}\n", set, pieces,
                 bytes / 1'000'000, way, rate(*std::min_element(taken.begin(), taken.end())),
                 rate(median(taken)), ratio);
    };
    print(plain.name, limit, 1);
    for (size_t i = 0; i < ways.size(); ++i) print(ways[i].name, times[i], median(ratios[i]));
  }

  ThreadPool pool;
  std::unique_ptr<Device> device;
  std::unique_ptr<Kernels> kernels;
  int rounds;
};

void measure_copies(Bench& bench, const std::string& name, const std::vector<StridedCopy>& copies,
                    const std::byte* from, std::byte* to) {
  uint64_t bytes = 0;
  for (const auto& copy : copies) bytes += copy.bytes();
  const auto batch = bench.kernels->prepare_copies(copies);
  bench.measure(name, copies.size(), bytes,
                {"plain memcpy", [&] { bench.plain_copy(from, to, bytes); }},
                {{"copy", [&] { batch->copy(); }}});
}

/// A setting of both roles, and how the model is cut down to fit.
struct Setting {
  std::string name;
  std::string trainer;
  std::string inference;
  uint32_t gpus = 1;
  ModelConfig config;
  bool experts_alone = false;
  bool merged = true;  ///< As an update does it; else a copy for each piece.
};

bool is_expert(const TensorInfo& tensor) {
  return tensor.name.find(".experts.") != std::string::npos;
}

/// The copies within GPU 0 that an update of the setting makes.
void measure_setting(Bench& bench, const Setting& setting) {
  const auto catalogue = make_catalogue(setting.name, setting.config);
  const auto trainer = make_trainer_layout(setting.trainer, catalogue, setting.gpus);
  const auto inference = make_inference_layout(setting.inference, catalogue, setting.gpus);
  Placement placement;
  for (uint32_t device = 0; device < setting.gpus; ++device) {
    placement.trainer_device.push_back(device);
    placement.inference_device.push_back(device);
    placement.device_node.push_back(0);
  }
  const RoleShards held_before(catalogue, *trainer);
  const RoleShards held_after(catalogue, *inference);
  auto pieces = Planner(catalogue, held_before, held_after, placement).part(0).pieces;
  std::erase_if(pieces, [&](const Piece& piece) {
    const bool elsewhere = piece.source != 0 || piece.target != 0;
    return elsewhere || (setting.experts_alone && !is_expert(catalogue.tensors()[piece.tensor]));
  });
  const Memory from(*bench.device, trainer->rank_layout(0).bytes);
  const Memory to(*bench.device, inference->rank_layout(0).bytes);
  std::vector<MergedCopy> merged;
  for (const size_t at_once = setting.merged ? pieces.size() : 1; !pieces.empty();) {
    const auto last = pieces.end() - static_cast<std::ptrdiff_t>(at_once);
    for (auto& copy : merge_pieces({last, pieces.end()})) merged.push_back(copy);
    pieces.erase(last, pieces.end());
  }
  std::vector<StridedCopy> copies;
  for (const auto& copy : merged) {
    copies.push_back({from.data() + copy.source_offset, to.data() + copy.target_offset, copy.rows,
                      copy.row_bytes, copy.source_stride, copy.target_stride});
  }
  measure_copies(bench, setting.name, copies, from.data(), to.data());
}

/// One matrix: copied, digested, and converted to other dtypes.
void measure_matrix(Bench& bench) {
  constexpr uint64_t kRows = 1 << 15;
  constexpr uint64_t kCols = 1 << 14;
  constexpr uint64_t kBytes = kRows * kCols * kElementBytes;
  const Memory from(*bench.device, kBytes);
  const Memory to(*bench.device, 2 * kBytes);
  measure_copies(bench, "one copy", {{from.data(), to.data(), 1, kBytes, kBytes, kBytes}},
                 from.data(), to.data());

  std::vector<float> scales(kRows / kScaleBlock * (kCols / kScaleBlock), 0.5F);
  const ScaleGrid grid{scales.data(), kCols / kScaleBlock, kScaleBlock, 0, 0};
  const auto converted = [&](DType dtype) {
    const uint64_t row_bytes = kCols * element_bytes(dtype);
    const StridedCopy copy{from.data(),
                           to.data(),
                           kRows,
                           row_bytes,
                           kCols * kElementBytes,
                           row_bytes,
                           Conversion{DType::kBf16, dtype, grid}};
    return bench.kernels->prepare_copies({&copy, 1});
  };
  const auto to_fp32 = converted(DType::kF32);
  const auto to_fp8 = converted(DType::kF8E4M3);
  const DigestView view{from.data(), kRows, kCols, kCols, 0, kCols, 42, kElementBytes, 0};
  const auto digest = bench.kernels->prepare_digests({&view, 1}, 1);
  const AmaxView amax{from.data(), DType::kBf16, kRows, kCols, kCols, grid};
  const auto find_scales = bench.kernels->prepare_scales({&amax, 1});
  bench.measure("one matrix", 1, kBytes,
                {"plain memcpy", [&] { bench.plain_copy(from.data(), to.data(), kBytes); }},
                {{"digest", [&] { digest->run(); }},
                 {"bf16 to fp32", [&] { to_fp32->copy(); }},
                 {"bf16 to fp8", [&] { to_fp8->copy(); }},
                 {"find scales", [&] { find_scales->find_amax(); }}});
}

void measure_pool(const Bench& bench) {
  std::vector<double> starts;
  std::vector<double> rounds;
  ThreadPool pool(bench.pool.threads());
  for (int i = 0; i < 20 * bench.rounds; ++i) {
    starts.push_back(seconds_of([&] { const ThreadPool fresh(pool.threads()); }));
    rounds.push_back(seconds_of([&] { pool.for_each(pool.threads(), [](size_t) {}); }));
  }
  fmt::print("\nthread pool: start and end {:.0f} us, a round without work {:.1f} us (medians)\n",
             median(starts) * 1e6, median(rounds) * 1e6);
}

std::vector<Setting> settings() {
  const auto cut = [](const char* preset, uint64_t layers, uint64_t hidden) {
    auto config = keep_first_layers(preset_config(preset), layers, preset);
    if (hidden != 0) config.hidden = hidden;
    return config;
  };
  // 9,216 tensors are the experts of 24 layers, 29 GB at full size: with a hidden size of 64 they
  // are as many, and rows that are cut by columns as long as they would be.
  return {{"Qwen3-4B, 2 layers", "megatron:tp=1", "sglang:tp=1", 1, cut("qwen3-4b", 2, 0)},
          {"9,216 expert tensors", "megatron:tp=1", "sglang:tp=1", 1, cut("qwen3-30b-a3b", 24, 64),
           true, false},
          {"9,216 expert tensors, columns halved", "megatron:tp=1,ep=2", "sglang:tp=2", 2,
           cut("qwen3-30b-a3b", 24, 128), true},
          {"Qwen3-30B-A3B, 2 layers, quarters", "megatron:tp=2", "sglang:tp=4", 4,
           cut("qwen3-30b-a3b", 2, 0), true}};
}

void run(size_t threads, int rounds) {
  Bench bench(threads, rounds);
  fmt::print("{} threads, {} rounds\n", threads, rounds);
  fmt::print("{:<40} {:>7} {:>6} {:<16} {:>9} {:>7} {:>7}\n", "set", "copies", "MB", "way", "best",
             "median", "ratio");
  fmt::print("{:<40} {:>7} {:>6} {:<16} {:>9} {:>7} {:>7}\n", "", "", "", "", "GB/s", "GB/s",
             "memcpy");
  measure_matrix(bench);
  for (const auto& setting : settings()) measure_setting(bench, setting);
  measure_pool(bench);
}

/// 0 for what is no number from 1 to 9999.
int read_number(const std::string& text) {
  int number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  return error == std::errc{} && stop == end && number < 10000 ? std::max(number, 0) : 0;
}

}  // namespace
}  // namespace awex

int main(int argc, char** argv) {
  const auto processors = std::to_string(std::max(1U, std::thread::hardware_concurrency()));
  const int threads = awex::read_number(argc > 1 ? argv[1] : processors);
  const int rounds = awex::read_number(argc > 2 ? argv[2] : "15");
  if (argc > 3 || threads == 0 || rounds == 0) {
    fmt::print(stderr, "usage: host_copies [THREADS [ROUNDS]]\n");
    return 2;
  }
  try {
    awex::run(static_cast<size_t>(threads), rounds);
  } catch (const awex::Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
  return 0;
}
