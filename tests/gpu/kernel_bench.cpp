// Prints what the kernels reach on the first GPU, against one cudaMemcpy of the same bytes in the
// same run; those that quantise are rated by the bytes that they read. Not a test. Usage:
// kernel_bench [part of the expert set's 29 GB, 1 by default]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "base/checked.hpp"
#include "base/log.hpp"
#include "gpu/gpu_bench.hpp"
#include "model/digest.hpp"

using namespace awex;
using awex::test::GpuBench;

namespace {

constexpr uint64_t kElementBytes = 2;
constexpr uint64_t kAlignment = 256;

struct Tensor {
  uint64_t rows;
  uint64_t cols;
  [[nodiscard]] uint64_t bytes() const { return rows * cols * kElementBytes; }
};

std::vector<Tensor> qwen3_4b() {
  std::vector<Tensor> tensors{{151'936, 2560}, {2560, 1}};
  for (int layer = 0; layer < 36; ++layer) {
    const Tensor of_layer[] = {{2560, 1},    {4096, 2560}, {1024, 2560}, {1024, 2560},
                               {128, 1},     {128, 1},     {2560, 4096}, {2560, 1},
                               {9728, 2560}, {9728, 2560}, {2560, 9728}};
    tensors.insert(tensors.end(), std::begin(of_layer), std::end(of_layer));
  }
  return tensors;
}

/// Half of the experts of Qwen3-30B-A3B.
std::vector<Tensor> half_of_the_experts(double part) {
  const auto count = static_cast<size_t>(9216 * part);
  std::vector<Tensor> tensors(count, {768, 2048});
  for (size_t i = 2; i < count; i += 3) tensors[i] = {2048, 768};
  return tensors;
}

/// Memory that lasts until the end of a set's measurements.
class Block {
 public:
  Block(Device& device, uint64_t bytes) : range_(device.reserve("benchmark", bytes)) {
    range_->take_chunks(0, range_->chunks());
    AWEX_CHECK(cudaMemset(data(), 0x5a, bytes), "fill {} bytes", bytes);
    AWEX_CHECK(cudaDeviceSynchronize(), "wait for the device");
  }
  [[nodiscard]] std::byte* data() const { return range_->data(); }

 private:
  std::unique_ptr<DeviceRange> range_;
};

/// Seconds of the fastest of several runs, by the device's own clock.
template <class Work>
double best_seconds(GpuBench& bench, const Work& work) {
  const auto stream = static_cast<cudaStream_t>(bench.kernels->stream(Stream::kMain));
  cudaEvent_t start = nullptr;
  cudaEvent_t end = nullptr;
  AWEX_CHECK(cudaEventCreate(&start), "make an event");
  AWEX_CHECK(cudaEventCreate(&end), "make an event");
  float best_ms = std::numeric_limits<float>::infinity();
  for (int run = 0; run < 12; ++run) {
    AWEX_CHECK(cudaEventRecord(start, stream), "record an event");
    work(stream);
    AWEX_CHECK(cudaEventRecord(end, stream), "record an event");
    bench.wait();
    float ms = 0;
    AWEX_CHECK(cudaEventElapsedTime(&ms, start, end), "read the time of a run");
    if (run > 1) best_ms = std::min(best_ms, ms);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  return static_cast<double>(best_ms) / 1e3;
}

struct Set {
  std::vector<StridedCopy> packed;     ///< Every tensor as a whole, in another order.
  std::vector<StridedCopy> strided;    ///< Every matrix as two halves of its columns.
  std::vector<StridedCopy> quantised;  ///< Every tensor as fp8.
  std::vector<DigestView> views;       ///< Of sources.
  std::vector<DigestView> quantised_views;
  std::vector<AmaxView> scales;
  uint64_t bytes = 0;
};

constexpr uint32_t kScaleBlock = 128;

uint64_t scales_of(const Tensor& tensor) {
  return round_up(tensor.rows, kScaleBlock) / kScaleBlock *
         (round_up(tensor.cols, kScaleBlock) / kScaleBlock);
}

/// What a set gets for quantising `tensor`, whose plain copy and view are the last ones.
void add_quantised(Set& set, const Tensor& tensor, float* scales) {
  const ScaleGrid grid{scales, round_up(tensor.cols, kScaleBlock) / kScaleBlock, kScaleBlock, 0, 0};
  const Conversion conversion{DType::kBf16, DType::kF8E4M3, grid};
  auto copy = set.packed.back();
  copy.row_bytes = tensor.cols;
  copy.to_stride = tensor.cols;
  copy.conversion = conversion;
  set.quantised.push_back(copy);
  set.quantised_views.push_back(set.views.back());
  set.quantised_views.back().conversion = conversion;
  set.scales.push_back(
      {copy.from, conversion.from, tensor.rows, tensor.cols, tensor.cols, conversion.grid});
}

Set lay_out(const std::vector<Tensor>& tensors, const std::byte* from, std::byte* to, float* scales,
            uint64_t space) {
  Set set;
  uint64_t from_at = 0;
  uint64_t to_end = space;
  for (const auto& tensor : tensors) {
    to_end -= round_up(tensor.bytes(), kAlignment);
    const uint64_t row_bytes = tensor.cols * kElementBytes;
    const StridedCopy whole{from + from_at, to + to_end, tensor.rows,
                            row_bytes,      row_bytes,   row_bytes};
    set.packed.push_back(whole);
    if (tensor.cols == 1) {
      set.strided.push_back(whole);
    } else {
      for (const uint64_t half : {uint64_t{0}, row_bytes / 2}) {
        auto copy = whole;
        copy.from += half;
        copy.to += half * tensor.rows;
        copy.row_bytes = row_bytes / 2;
        copy.to_stride = row_bytes / 2;
        set.strided.push_back(copy);
      }
    }
    set.views.push_back({from + from_at, tensor.rows, tensor.cols, tensor.cols, 0, tensor.cols,
                         mix64(from_at), kElementBytes, static_cast<uint32_t>(set.views.size())});
    add_quantised(set, tensor, scales);
    scales += scales_of(tensor);
    set.bytes += tensor.bytes();
    from_at += round_up(tensor.bytes(), kAlignment);
  }
  return set;
}

/// Views of what copies write, or of what they read: rows as they are in the copy.
std::vector<DigestView> views_of(const std::vector<StridedCopy>& copies, bool of_sources) {
  std::vector<DigestView> views;
  for (const auto& copy : copies) {
    const uint64_t stride = of_sources ? copy.from_stride : copy.to_stride;
    const uint64_t cols = copy.row_bytes / kElementBytes;
    views.push_back({of_sources ? copy.from : copy.to, copy.rows, cols, stride / kElementBytes, 0,
                     copy.from_stride / kElementBytes, mix64(views.size()), kElementBytes,
                     static_cast<uint32_t>(views.size())});
  }
  return views;
}

std::vector<uint64_t> sums_of(GpuBench& bench, DigestBatch& batch) {
  batch.run();
  bench.wait();
  return {batch.sums().begin(), batch.sums().end()};
}

/// Copies with the digests of `views`, against separate ones of the same.
template <class Print>
void measure_proven(GpuBench& bench, const std::vector<StridedCopy>& copies,
                    const std::vector<DigestView>& views, const std::string& what,
                    const Print& print) {
  const auto sum_count = static_cast<uint32_t>(views.size());
  const auto separate = bench.kernels->prepare_digests(views, sum_count);
  const auto batch = bench.kernels->prepare_proven_copies(copies, views, sum_count);
  const double seconds = best_seconds(bench, [&](cudaStream_t /*stream*/) { batch->run(); });
  if (sums_of(bench, *batch) != sums_of(bench, *separate)) {
    throw runtime_error(fmt::format("{}: the digests differ from separate ones", what));
  }
  print(what.c_str(), seconds);
}

void measure(GpuBench& bench, const std::string& name, const std::vector<Tensor>& tensors) {
  uint64_t space = 0;
  uint64_t scale_count = 0;
  for (const auto& tensor : tensors) {
    space += round_up(tensor.bytes(), kAlignment);
    scale_count += scales_of(tensor);
  }
  const Block from(*bench.device, space);
  const Block to(*bench.device, space);
  const Block scales(*bench.device, scale_count * sizeof(float));
  const auto set =
      lay_out(tensors, from.data(), to.data(), reinterpret_cast<float*>(scales.data()), space);
  const auto packed = bench.kernels->prepare_copies(set.packed);
  const auto strided = bench.kernels->prepare_copies(set.strided);
  const auto digests =
      bench.kernels->prepare_digests(set.views, static_cast<uint32_t>(set.views.size()));
  const auto quantised = bench.kernels->prepare_copies(set.quantised);
  const auto quantised_digests = bench.kernels->prepare_digests(
      set.quantised_views, static_cast<uint32_t>(set.quantised_views.size()));
  const auto scale_batch = bench.kernels->prepare_scales(set.scales);
  const double limit = best_seconds(bench, [&](cudaStream_t stream) {
    AWEX_CHECK(cudaMemcpyAsync(to.data(), from.data(), set.bytes, cudaMemcpyDefault, stream),
               "copy the set at once");
  });
  const auto print = [&](const char* what, double seconds) {
    fmt::print("{:<22} {:<43} {:>8} {:>9.3f} {:>9.1f} {:>7.3f}\n", name, what, tensors.size(),
               seconds * 1e3, static_cast<double>(set.bytes) / seconds / 1e9, limit / seconds);
  };
  print("one cudaMemcpy", limit);
  print("copy, whole tensors",
        best_seconds(bench, [&](cudaStream_t /*stream*/) { packed->copy(); }));
  print("copy, half columns",
        best_seconds(bench, [&](cudaStream_t /*stream*/) { strided->copy(); }));
  for (const auto& [shape, copies] :
       {std::pair("", &set.packed), {", half columns", &set.strided}}) {
    auto views = views_of(*copies, false);
    measure_proven(bench, *copies, views, fmt::format("copy + digest of target{}", shape), print);
    const auto sources = views_of(*copies, true);
    views.insert(views.end(), sources.begin(), sources.end());
    for (size_t i = 0; i < views.size(); ++i) views[i].sum = static_cast<uint32_t>(i);
    measure_proven(bench, *copies, views, fmt::format("copy + digests of both sides{}", shape),
                   print);
  }
  print("compare", best_seconds(bench, [&](cudaStream_t /*stream*/) { packed->compare(); }));
  print("digest", best_seconds(bench, [&](cudaStream_t /*stream*/) { digests->run(); }));
  print("find scales", best_seconds(bench, [&](cudaStream_t /*stream*/) {
          scale_batch->find_amax();
          scale_batch->finish();
        }));
  print("copy as fp8", best_seconds(bench, [&](cudaStream_t /*stream*/) { quantised->copy(); }));
  print("digest as fp8",
        best_seconds(bench, [&](cudaStream_t /*stream*/) { quantised_digests->run(); }));
}

}  // namespace

int main(int argc, char** argv) {
  const double part = argc > 1 ? std::strtod(argv[1], nullptr) : 1;
  try {
    GpuBench bench;
    fmt::print("device: {}\n", bench.device->identity().name);
    fmt::print("{:<22} {:<43} {:>8} {:>9} {:>9} {:>7}\n", "set", "way", "tensors", "time", "rate",
               "ratio");
    fmt::print("{:<22} {:<43} {:>8} {:>9} {:>9} {:>7}\n", "", "", "", "ms", "GB/s", "memcpy");
    measure(bench, "Qwen3-4B", qwen3_4b());
    if (part > 0) measure(bench, "half of 30B's experts", half_of_the_experts(part));
  } catch (const Error& error) {
    log::error(error);
    return static_cast<int>(error.code());
  }
  return 0;
}
