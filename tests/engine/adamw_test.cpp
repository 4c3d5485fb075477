#include "engine/adamw.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "base/wait.hpp"
#include "base/work_progress.hpp"
#include "engine/adamw_math.hpp"
#include "engine/trainer_stand_in.hpp"
#include "layout/engines.hpp"
#include "memory/device.hpp"
#include "memory/ledger.hpp"
#include "model/convert.hpp"
#include "model/generated_source.hpp"
#include "model/presets.hpp"
#include "support/renewing_monitor.hpp"
#include "transfer/kernels/kernels.hpp"

using namespace awex;

namespace {

constexpr uint64_t kRows = 23;
constexpr uint64_t kCols = 41;
constexpr uint64_t kKey = 0x1234567890abcdef;
constexpr float kPoison = 12345.0F;

/// A start value between -1 and 1 that names its canonical index.
float start_value(uint64_t index) { return generated_gradient(99, 7, index); }

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

/// A box of the test's tensor of kRows x kCols in memory of its own, its rows `padding` apart.
class Block {
 public:
  Block(DType dtype, uint64_t row, uint64_t rows, uint64_t col, uint64_t cols, uint64_t padding)
      : dtype_(dtype),
        row_(row),
        rows_(rows),
        col_(col),
        cols_(cols),
        stride_(cols + padding),
        weights_(rows * stride_ * element_bytes(dtype), std::byte{0x5a}),
        master_(rows * stride_, kPoison),
        exp_avg_(rows * stride_, kPoison),
        exp_avg_sq_(rows * stride_, kPoison) {
    for_each([this](uint64_t at, uint64_t index) { set_weight(at, start_value(index)); });
  }

  [[nodiscard]] AdamWView view() {
    return {weights_.data(), master_.data(),
            exp_avg_.data(), exp_avg_sq_.data(),
            rows_,           cols_,
            stride_,         row_ * kCols + col_,
            kCols,           kKey};
  }

  /// Calls work(position in the arrays, canonical index).
  template <class Work>
  void for_each(const Work& work) const {
    for (uint64_t row = 0; row < rows_; ++row) {
      for (uint64_t col = 0; col < cols_; ++col) {
        work(row * stride_ + col, (row_ + row) * kCols + col_ + col);
      }
    }
  }

  [[nodiscard]] float weight(uint64_t at) const {
    if (dtype_ == DType::kF32) return load<F32Element>(at);
    return dtype_ == DType::kBf16 ? load<Bf16Element>(at) : load<F16Element>(at);
  }
  [[nodiscard]] const std::vector<float>& master() const { return master_; }
  [[nodiscard]] const std::vector<float>& exp_avg() const { return exp_avg_; }
  [[nodiscard]] const std::vector<float>& exp_avg_sq() const { return exp_avg_sq_; }

  /// Whether the padding between rows is as it was.
  [[nodiscard]] bool padding_is_untouched() const {
    for (uint64_t row = 0; row < rows_; ++row) {
      for (uint64_t at = row * stride_ + cols_; at < (row + 1) * stride_; ++at) {
        if (master_[at] != kPoison || exp_avg_[at] != kPoison || exp_avg_sq_[at] != kPoison ||
            weights_[at * element_bytes(dtype_)] != std::byte{0x5a}) {
          return false;
        }
      }
    }
    return true;
  }

 private:
  template <class Element>
  [[nodiscard]] float load(uint64_t at) const {
    typename Element::Bits bits = 0;
    std::memcpy(&bits, weights_.data() + at * sizeof(bits), sizeof(bits));
    return Element::value(bits);
  }
  template <class Element>
  void store(uint64_t at, float value) {
    const auto bits = Element::bits(value);
    std::memcpy(weights_.data() + at * sizeof(bits), &bits, sizeof(bits));
  }
  void set_weight(uint64_t at, float value) {
    if (dtype_ == DType::kF32) store<F32Element>(at, value);
    if (dtype_ == DType::kBf16) store<Bf16Element>(at, value);
    if (dtype_ == DType::kF16) store<F16Element>(at, value);
  }

  DType dtype_;
  uint64_t row_;
  uint64_t rows_;
  uint64_t col_;
  uint64_t cols_;
  uint64_t stride_;
  std::vector<std::byte> weights_;
  std::vector<float> master_;
  std::vector<float> exp_avg_;
  std::vector<float> exp_avg_sq_;
};

/// Initialises and takes `steps` steps over all blocks.
void train(std::vector<Block>& blocks, DType dtype, uint64_t steps, size_t threads) {
  const auto device = make_host_device(0, 1);
  const auto kernels = make_kernels(*device, 1);
  std::vector<AdamWView> views;
  for (auto& block : blocks) views.push_back(block.view());
  ThreadPool pool(threads);
  const auto adamw = make_adamw(*device, *kernels, views, dtype, pool);
  adamw->initialise();
  for (uint64_t step = 1; step <= steps; ++step) adamw->step(make_step({}, step));
  NoMonitor monitor;
  kernels->wait("the steps", Deadline(Seconds(60)), monitor);
}

/// All bits of a trained tensor by canonical index: weight, master and moments.
std::vector<uint32_t> trained_bits(std::vector<Block> blocks, DType dtype, size_t threads) {
  train(blocks, dtype, 4, threads);
  std::vector<uint32_t> bits(kRows * kCols * 4, 0xffffffff);
  for (const auto& block : blocks) {
    CHECK(block.padding_is_untouched());
    block.for_each([&](uint64_t at, uint64_t index) {
      bits[index * 4] = bits_of(block.weight(at));
      bits[index * 4 + 1] = bits_of(block.master()[at]);
      bits[index * 4 + 2] = bits_of(block.exp_avg()[at]);
      bits[index * 4 + 3] = bits_of(block.exp_avg_sq()[at]);
    });
  }
  return bits;
}

struct DoubleState {
  double master;
  double exp_avg = 0;
  double exp_avg_sq = 0;
};

/// The algorithm of the paper in double precision, written from the paper.
void step_in_double(DoubleState& state, double gradient, uint64_t t) {
  const AdamWSettings s;
  const double b1 = s.beta1;
  const double b2 = s.beta2;
  state.exp_avg = b1 * state.exp_avg + (1 - b1) * gradient;
  state.exp_avg_sq = b2 * state.exp_avg_sq + (1 - b2) * gradient * gradient;
  const double mhat = state.exp_avg / (1 - std::pow(b1, t));
  const double vhat = state.exp_avg_sq / (1 - std::pow(b2, t));
  const double lr = s.learning_rate;
  const double decay = s.weight_decay;
  const double eps = s.epsilon;
  state.master -= lr * (mhat / (std::sqrt(vhat) + eps) + decay * state.master);
}

constexpr DType kTrainable[] = {DType::kBf16, DType::kF16, DType::kF32};

}  // namespace

TEST_CASE("initialising copies the weights to the masters and clears the moments") {
  for (const auto dtype : kTrainable) {
    std::vector<Block> blocks{{dtype, 0, kRows, 0, kCols, 3}};
    train(blocks, dtype, 0, 2);
    const auto& block = blocks.front();
    bool right = block.padding_is_untouched();
    block.for_each([&](uint64_t at, uint64_t /*index*/) {
      right = right && block.master()[at] == block.weight(at) && block.exp_avg()[at] == 0 &&
              block.exp_avg_sq()[at] == 0;
    });
    CHECK(right);
  }
}

TEST_CASE("steps follow the algorithm in double precision") {
  constexpr uint64_t kSteps = 20;
  for (const auto dtype : kTrainable) {
    std::vector<Block> untrained{{dtype, 0, kRows, 0, kCols, 0}};
    auto blocks = untrained;
    train(blocks, dtype, kSteps, 2);
    const auto& block = blocks.front();
    double worst = 0;
    block.for_each([&](uint64_t at, uint64_t index) {
      DoubleState expected{untrained.front().weight(at)};
      for (uint64_t t = 1; t <= kSteps; ++t) {
        step_in_double(expected, generated_gradient(make_step({}, t).gradient_seed, kKey, index),
                       t);
      }
      worst = std::max({worst, std::abs(expected.master - block.master()[at]),
                        std::abs(expected.exp_avg - block.exp_avg()[at]),
                        std::abs(expected.exp_avg_sq - block.exp_avg_sq()[at])});
    });
    CHECK(worst < 1e-6);
    CHECK(worst > 0);  // fp32 cannot be exact: the comparison compared something
  }
}

TEST_CASE("weights are the masters, rounded") {
  std::vector<Block> blocks{{DType::kBf16, 0, kRows, 0, kCols, 1}};
  train(blocks, DType::kBf16, 3, 1);
  const auto& block = blocks.front();
  int differing = 0;
  bool right = true;
  block.for_each([&](uint64_t at, uint64_t /*index*/) {
    const float master = block.master()[at];
    right = right && bits_of(block.weight(at)) == bits_of(bf16_to_f32(f32_to_bf16(master)));
    differing += block.weight(at) != master;
  });
  CHECK(right);
  CHECK(differing > 0);
}

TEST_CASE("any split of a tensor over ranks and threads takes the same steps, bit for bit") {
  for (const auto dtype : kTrainable) {
    const auto whole = trained_bits({{dtype, 0, kRows, 0, kCols, 0}}, dtype, 1);
    CHECK(whole == trained_bits({{dtype, 0, kRows, 0, kCols, 5}}, dtype, 3));
    CHECK(whole ==
          trained_bits({{dtype, 0, 10, 0, kCols, 0}, {dtype, 10, 13, 0, kCols, 2}}, dtype, 2));
    CHECK(whole == trained_bits({{dtype, 0, kRows, 0, 1, 0},
                                 {dtype, 0, 7, 1, 40, 1},
                                 {dtype, 7, 16, 1, 17, 0},
                                 {dtype, 7, 16, 18, 23, 9}},
                                dtype, 4));
  }
}

TEST_CASE("a tensor larger than a tile takes the same steps with one thread and with several") {
  constexpr uint64_t kElements = 300001;
  const auto run = [](size_t threads) {
    std::vector<float> weights(kElements);
    for (uint64_t i = 0; i < kElements; ++i) weights[i] = start_value(i);
    std::vector<float> state(3 * kElements, kPoison);
    const AdamWView view{reinterpret_cast<std::byte*>(weights.data()),
                         state.data(),
                         state.data() + kElements,
                         state.data() + 2 * kElements,
                         1,
                         kElements,
                         kElements,
                         0,
                         kElements,
                         kKey};
    const auto device = make_host_device(0, 1);
    const auto kernels = make_kernels(*device, 1);
    ThreadPool pool(threads);
    const auto adamw = make_adamw(*device, *kernels, {&view, 1}, DType::kF32, pool);
    adamw->initialise();
    adamw->step(make_step({}, 1));
    return std::pair(weights, state);
  };
  const auto one = run(1);
  CHECK((one == run(3)));
  CHECK(std::count(one.second.begin(), one.second.end(), kPoison) == 0);
}

TEST_CASE("a step's corrections are 1 - beta^step, and each step has its own gradients") {
  const AdamWSettings settings;
  const auto first = make_step(settings, 1);
  CHECK(first.bias_correction1 == doctest::Approx(0.1));
  CHECK(first.bias_correction2 == doctest::Approx(0.001));
  const auto second = make_step(settings, 2);
  CHECK(second.bias_correction1 == doctest::Approx(0.19));
  CHECK(make_step(settings, 1000000).bias_correction2 == 1.0F);
  CHECK(first.gradient_seed != second.gradient_seed);
  CHECK(first.settings.learning_rate == settings.learning_rate);
}

TEST_CASE(
    "generated gradients are in [-1, 1), in steps of 2^-23, centred, and of their step and "
    "tensor") {
  double sum = 0;
  int below = 0;
  constexpr int kCount = 100000;
  for (uint64_t i = 0; i < kCount; ++i) {
    const float gradient = generated_gradient(1, kKey, i);
    REQUIRE(gradient >= -1.0F);
    REQUIRE(gradient < 1.0F);
    REQUIRE(std::ldexp(gradient, 23) == std::round(std::ldexp(gradient, 23)));
    sum += gradient;
    below += gradient < 0;
  }
  CHECK(std::abs(sum / kCount) < 0.01);
  CHECK(below == doctest::Approx(kCount / 2).epsilon(0.02));
  CHECK(generated_gradient(1, kKey, 0) != generated_gradient(2, kKey, 0));
  CHECK(generated_gradient(1, kKey, 0) != generated_gradient(1, kKey + 1, 0));
}

TEST_CASE("weights in fp8 cannot be trained") {
  const auto device = make_host_device(0, 1);
  const auto kernels = make_kernels(*device, 1);
  ThreadPool pool(1);
  for (const auto dtype : {DType::kF8E4M3, DType::kF8E5M2}) {
    try {
      static_cast<void>(make_adamw(*device, *kernels, {}, dtype, pool));
      FAIL_CHECK("nothing was thrown");
    } catch (const Error& error) {
      const std::string message = error.what();
      CHECK(error.code() == ExitCode::kRequest);
      CHECK(message.find(dtype_name(dtype)) != std::string::npos);
      CHECK(error.hint().find("--optimizer none") != std::string::npos);
    }
  }
}

TEST_CASE("a trainer tells of its loading and then of its optimizer's start, byte by byte") {
  const auto catalogue =
      make_catalogue("tiny", keep_first_layers(preset_config("tiny-dense"), 2, "tiny-dense"));
  const auto source = generate_weights(catalogue);
  const auto device = make_host_device(0, 2);
  const auto kernels = make_kernels(*device, 2);
  const auto queue = device->make_queue();
  const auto layout = make_trainer_layout("megatron:tp=1", catalogue, 1)->rank_layout(0);
  LedgerWords words;
  MemoryLedger ledger(words, 1ULL << 30);
  ThreadPool threads(2);
  test::RenewingMonitor monitor;
  TrainerStandIn trainer(TrainerParts{
      .common = {catalogue, layout, *device, ledger, *kernels, *queue, monitor, Seconds(60)},
      .source = *source,
      .weights_bytes = layout.bytes,
      .threads = threads});
  const uint64_t before = work::advanced();
  trainer.load(Deadline(Seconds(60)), monitor);
  // Weights in bf16, then master and moments in fp32.
  CHECK(work::advanced() - before == catalogue.elements() * (2 + 12));
  bool initialises = false;
  for (const auto& progress : monitor.told) {
    CAPTURE(progress.what);
    const bool is_loading = progress.what == "loading the weights";
    CHECK(is_loading != (progress.what == "initialising the optimizer after loading"));
    CHECK_FALSE((initialises && is_loading));
    initialises = initialises || !is_loading;
    CHECK(progress.all_bytes == catalogue.bytes());  // what a user sees stays of the weights
    if (!is_loading || progress.ended) CHECK(progress.done_bytes == catalogue.bytes());
  }
  CHECK(initialises);
  CHECK(monitor.told.back().ended);
}
