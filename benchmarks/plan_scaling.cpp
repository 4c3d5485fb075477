// How planning grows with ranks and with tensors.
//
//   plan_scaling [MAX_RANKS]                                 Kimi-K2, several worlds and depths
//   plan_scaling MODEL RANKS TRAINER INFERENCE [PER_NODE]    one setting, of a preset's name
//
// Every line is a process of its own, so that its peak of memory is that of its own plan. It plans
// what one GPU takes part in, from the two layouts to the list of pieces, several times over, and
// then counts what the whole cluster moves. The catalogue and the layouts are made once before.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "layout/engines.hpp"
#include "layout/held_catalogue.hpp"
#include "layout/trainer_scales.hpp"
#include "model/presets.hpp"
#include "plan/planner.hpp"

namespace awex {
namespace {

constexpr int kRuns = 9;

struct Setting {
  std::string model;
  uint64_t layers = 0;  ///< 0: all of the model.
  uint32_t ranks = 0;   ///< Of each role, both on the same GPUs.
  std::string trainer;
  std::string inference;
  uint32_t gpus_per_node = 8;
};

/// Of the whole process, the catalogue of tensors included.
double peak_megabytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024 / 1e6;
}

/// Milliseconds of processor time, which is what elapses on a machine that does nothing else, as
/// all of this is one thread. Each call returns what passed since the one before.
class Lap {
 public:
  double next() {
    const std::clock_t before = last_;
    last_ = std::clock();
    return static_cast<double>(last_ - before) * 1e3 / CLOCKS_PER_SEC;
  }

 private:
  std::clock_t last_ = std::clock();
};

/// Milliseconds of the steps of one rank's plan.
struct Steps {
  double shards = 0;  ///< What the ranks of both roles hold, from the layouts.
  double routes = 0;  ///< Which boxes go where.
  double pieces = 0;  ///< The rank's own list.

  [[nodiscard]] double all() const { return shards + routes + pieces; }
};

Placement colocated(const Setting& setting) {
  Placement placement;
  for (uint32_t device = 0; device < setting.ranks; ++device) {
    placement.trainer_device.push_back(device);
    placement.inference_device.push_back(device);
    placement.device_node.push_back(device / setting.gpus_per_node);
  }
  return placement;
}

Catalogue model_of(const Setting& setting) {
  auto config = preset_config(setting.model);
  if (setting.layers != 0) config.layers = setting.layers;
  return make_catalogue(setting.model, config);
}

/// The most that a trainer sends between devices, against the mean.
double imbalance(const std::vector<uint64_t>& sent) {
  uint64_t most = 0;
  uint64_t all = 0;
  for (const uint64_t bytes : sent) {
    most = std::max(most, bytes);
    all += bytes;
  }
  if (all == 0) return 1;
  return static_cast<double>(most) * static_cast<double>(sent.size()) / static_cast<double>(all);
}

void print_header() {
  fmt::print(
      "{:>6} {:>7} {:>6} {:>9} {:>8} {:>7} {:>7} {:>7} {:>8} {:>8} {:>7} {:>8} {:>8} {:>9} "
      "{:>8}\n",
      "ranks", "tensors", "kinds", "catalogue", "layouts", "shards", "routes", "pieces", "one rank",
      "one rank", "pieces", "memory", "cluster", "pieces", "max/mean");
  fmt::print(
      "{:>6} {:>7} {:>6} {:>9} {:>8} {:>7} {:>7} {:>7} {:>8} {:>8} {:>7} {:>8} {:>8} {:>9} "
      "{:>8}\n",
      "", "", "", "(ms)", "(ms)", "(ms)", "(ms)", "(ms)", "best(ms)", "median", "its own",
      "peak(MB)", "(ms)", "cluster", "sent");
}

/// Counts the whole cluster's plan: its pieces, and the load of every sender.
void print_cluster(const Planner& planner, uint32_t ranks, double planned) {
  Lap lap;
  std::vector<uint64_t> sent(ranks, 0);
  uint64_t pieces = 0;
  planner.for_each_flow([&](const Flow& flow) {
    pieces += flow.pieces;
    if (flow.near != Near::kDevice) sent[flow.source] += flow.bytes;
  });
  fmt::print(" {:>8.1f} {:>9} {:>8.3f}\n", planned + lap.next(), pieces, imbalance(sent));
}

void measure(const Setting& setting) {
  Lap lap;
  const auto model = model_of(setting);
  const auto catalogue = held_catalogue(setting.inference, model);
  const double catalogue_ms = lap.next();
  const auto trainer =
      with_scales(make_trainer_layout(setting.trainer, model, setting.ranks), catalogue);
  const auto inference = make_inference_layout(setting.inference, catalogue, setting.ranks);
  const double layouts_ms = lap.next();
  const auto placement = colocated(setting);

  std::vector<Steps> runs;
  for (int run = 0; run < kRuns; ++run) {
    lap.next();
    Steps steps;
    const RoleShards from(catalogue, *trainer);
    const RoleShards to(catalogue, *inference);
    steps.shards = lap.next();
    const Planner planner(catalogue, from, to, placement);
    steps.routes = lap.next();
    const auto part = planner.part(setting.ranks / 2);
    steps.pieces = lap.next();
    runs.push_back(steps);
    if (run + 1 < kRuns) continue;
    const double memory = peak_megabytes();
    std::sort(runs.begin(), runs.end(),
              [](const Steps& a, const Steps& b) { return a.all() < b.all(); });
    const Steps& best = runs.front();
    const Steps& median = runs[runs.size() / 2];
    fmt::print(
        "{:>6} {:>7} {:>6} {:>9.1f} {:>8.1f} {:>7.1f} {:>7.1f} {:>7.1f} {:>8.1f} {:>8.1f} "
        "{:>7} {:>8.0f}",
        setting.ranks, catalogue.tensors().size(), planner.kinds(), catalogue_ms, layouts_ms,
        best.shards, best.routes, best.pieces, best.all(), median.all(), part.pieces.size(),
        memory);
    print_cluster(planner, setting.ranks, best.shards + best.routes);
  }
}

/// Measures in a process of its own; whether it went well.
bool measure_apart(const Setting& setting) {
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child < 0) throw errno_error("measure in a process of its own", "fork", errno);
  if (child == 0) {
    int code = 0;
    try {
      measure(setting);
    } catch (const Error& error) {
      fmt::print(stderr, "error: {}\n", error.what());
      code = 1;
    }
    std::fflush(stdout);
    ::_exit(code);
  }
  int status = 0;
  return ::waitpid(child, &status, 0) == child && status == 0;
}

/// The trainer's ep is 64, or what a stage of a smaller world has ranks for.
Setting kimi(uint32_t ranks, uint64_t layers) {
  return {.model = "kimi-k2",
          .layers = layers,
          .ranks = ranks,
          .trainer = fmt::format("megatron:tp=8,pp=16,last=1,ep={},etp=1",
                                 std::min<uint32_t>(64, ranks / 16)),
          .inference = "sglang:tp=32,ep=32"};
}

int run_all(const std::vector<Setting>& settings) {
  print_header();
  bool good = true;
  for (const auto& setting : settings) good = measure_apart(setting) && good;
  return good ? 0 : 1;
}

std::vector<Setting> growth(uint32_t most) {
  std::vector<Setting> settings;
  for (uint32_t ranks = 128; ranks <= most; ranks *= 2) settings.push_back(kimi(ranks, 0));
  for (const uint64_t layers : {46, 31, 16}) settings.push_back(kimi(most, layers));
  return settings;
}

std::optional<uint32_t> read_number(const std::string& text) {
  uint32_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stop != end || number == 0) return std::nullopt;
  return number;
}

int usage() {
  fmt::print(stderr,
             "usage: plan_scaling [MAX_RANKS], a power of two from 128 to 65536\n"
             "       plan_scaling MODEL RANKS TRAINER INFERENCE [GPUS_PER_NODE]\n");
  return 2;
}

int run(const std::vector<std::string>& words) {
  if (words.size() <= 1) {
    const auto most = read_number(words.empty() ? "1024" : words[0]);
    if (!most || *most < 128 || *most > 65536 || (*most & (*most - 1)) != 0) return usage();
    return run_all(growth(*most));
  }
  if (words.size() < 4 || words.size() > 5) return usage();
  const auto ranks = read_number(words[1]);
  const auto per_node = read_number(words.size() == 5 ? words[4] : "8");
  if (!ranks || !per_node) return usage();
  return run_all({{.model = words[0],
                   .ranks = *ranks,
                   .trainer = words[2],
                   .inference = words[3],
                   .gpus_per_node = *per_node}});
}

}  // namespace
}  // namespace awex

int main(int argc, char** argv) { return awex::run({argv + 1, argv + argc}); }
