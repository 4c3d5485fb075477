#include "transfer/kernels/cuda_proven.hpp"

#include <doctest/doctest.h>

#include <array>
#include <vector>

#include "gpu/gpu_bench.hpp"
#include "support/proven_case.hpp"

using namespace awex;
using awex::test::GpuBench;
using awex::test::GpuBuffer;
using awex::test::named_bytes;
using awex::test::ProvenCase;

namespace {

constexpr std::byte kPoison{0xee};

/// From digests right behind their copies, which must wait, to those far behind; counted one by one
/// or all together.
constexpr std::array<cuda::LaunchShape, 5> kShapes{
    {{1, 0}, {3, 1}, {16, 0}, kProvenShape, {5000, 7}}};

/// Runs the case several times, with another source each time: a digest that reads what is not
/// written yet, or what its block remembers from before, differs.
void check_case(GpuBench& bench, const ProvenCase& c, const cuda::LaunchShape& shape) {
  GpuBuffer from(*bench.device, std::vector<std::byte>(c.from_bytes()));
  std::vector<std::byte> expected(c.to_bytes(), kPoison);
  GpuBuffer to(*bench.device, expected);
  const auto batch = make_cuda_proven_copies(
      c.copies(from.data(), to.data()), c.views(from.data(), to.data()), ProvenCase::kSums,
      static_cast<cudaStream_t>(bench.kernels->stream(Stream::kMain)), shape);
  for (uint64_t run = 0; run < 3; ++run) {
    CAPTURE(run);
    const auto source = named_bytes(c.from_bytes(), run * 1'000'003);
    from.write(0, source);
    c.copy(source, expected);
    batch->run();
    bench.wait();
    const auto sums = batch->sums();
    CHECK(std::vector<uint64_t>(sums.begin(), sums.end()) == c.sums(source, expected));
    CHECK((to.fetch() == expected));
  }
}

}  // namespace

TEST_CASE("copies and their digests in one launch are those of a byte by byte copy") {
  GpuBench bench;
  for (const auto& shape : kShapes) {
    CAPTURE(shape.stretch_steps);
    CAPTURE(shape.lag_steps);
    for (uint32_t seed = 0; seed < 6; ++seed) {
      CAPTURE(seed);
      check_case(bench, ProvenCase(seed, 1 + static_cast<int>(seed) * 12, 100'000), shape);
    }
  }
}

TEST_CASE("so they are with more blocks than run at once") {
  GpuBench bench;
  for (const auto& shape : kShapes) {
    CAPTURE(shape.stretch_steps);
    CAPTURE(shape.lag_steps);
    check_case(bench, ProvenCase(100, 30, 5'000'000), shape);
  }
}

TEST_CASE("a launch has copies alone, digests alone, or nothing") {
  GpuBench bench;
  const auto source = named_bytes(200'000);
  const GpuBuffer from(*bench.device, source);
  const GpuBuffer to(*bench.device, std::vector<std::byte>(source.size(), kPoison));
  const StridedCopy copy{from.data(), to.data(), 1, source.size(), 0, 0};
  const auto copied = bench.kernels->prepare_proven_copies({&copy, 1}, {}, 0);
  copied->run();
  bench.wait();
  CHECK(copied->sums().empty());
  CHECK((to.fetch() == source));
  const DigestView view{to.data(), 1, source.size(), 0, 0, 0, 99, 1, 1};
  const auto digested = bench.kernels->prepare_proven_copies({}, {&view, 1}, 2);
  digested->run();
  bench.wait();
  CHECK(digested->sums()[0] == 0);
  CHECK(digested->sums()[1] == digest_elements(99, 1, 0, source));
  const auto nothing = bench.kernels->prepare_proven_copies({}, {}, 3);
  nothing->run();
  bench.wait();
  REQUIRE(nothing->sums().size() == 3);
  CHECK((nothing->sums()[0] | nothing->sums()[1] | nothing->sums()[2]) == 0);
}

TEST_CASE("copies and views that convert go before and behind the others") {
  GpuBench bench;
  // 1.5, -2 and others exactly: bf16 is the upper half of fp32.
  std::vector<std::byte> source(2 * 40'000);
  for (uint64_t i = 0; i < source.size(); i += 2) source[i + 1] = std::byte{0x3f};
  std::vector<std::byte> widened;
  for (uint64_t i = 0; i < source.size(); i += 2) {
    for (const auto byte : {std::byte{0}, std::byte{0}, source[i], source[i + 1]}) {
      widened.push_back(byte);
    }
  }
  const GpuBuffer from(*bench.device, source);
  const GpuBuffer to(*bench.device, std::vector<std::byte>(widened.size(), kPoison));
  const GpuBuffer plain(*bench.device, std::vector<std::byte>(source.size(), kPoison));
  const Conversion widen{DType::kBf16, DType::kF32, {}};
  const std::array copies{
      StridedCopy{from.data(), plain.data(), 1, source.size(), 0, 0},
      StridedCopy{from.data(), to.data(), 1, widened.size(), 0, 0, widen},
  };
  const uint64_t elements = source.size() / 2;
  const std::array views{
      DigestView{to.data(), 1, elements, 0, 0, 0, 7, 4, 0},
      DigestView{plain.data(), 1, elements, 0, 0, 0, 7, 2, 1, widen},
      DigestView{plain.data(), 1, elements, 0, 0, 0, 7, 2, 2},
  };
  const auto batch = bench.kernels->prepare_proven_copies(copies, views, 3);
  batch->run();
  bench.wait();
  CHECK((to.fetch() == widened));
  CHECK(batch->sums()[0] == digest_elements(7, 4, 0, widened));
  CHECK(batch->sums()[1] == batch->sums()[0]);
  CHECK(batch->sums()[2] == digest_elements(7, 2, 0, source));
}
