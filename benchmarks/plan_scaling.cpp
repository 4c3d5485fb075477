// How planning grows with ranks and with tensors: plan_scaling [MAX_RANKS]
//
// One process plans what one GPU takes part in, and then counts what the whole cluster moves. The
// trainer is tp 8, pp 16, ep 64 and inference tp 32, ep 32 in as many instances as there are GPUs
// for, both on the same GPUs, 8 a node; the model has Kimi-K2's sizes, fewer experts where said.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "support/large_layouts.hpp"
#include "transfer/planner.hpp"

namespace awex {
namespace {

/// Of the whole process, the catalogue of tensors included.
double peak_megabytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1e3;
}

/// Processor time: what elapses on a machine that does nothing else, as all of this is one thread.
class ProcessorWatch {
 public:
  [[nodiscard]] double seconds() const {
    return static_cast<double>(std::clock() - start_) / CLOCKS_PER_SEC;
  }

 private:
  std::clock_t start_ = std::clock();
};

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

void measure(uint32_t ranks, uint64_t experts) {
  test::LargeModel model;
  model.experts = experts;
  const auto catalogue = test::large_catalogue(model);
  const auto stage = std::max<uint32_t>(1, ranks / 16);
  const auto trainer_ep = std::min<uint32_t>(64, stage);
  const test::LargeLayout trainer(catalogue, model, ranks, 8, 16, trainer_ep);
  const test::LargeLayout inference(catalogue, model, ranks, 32, 1, 32);
  const auto placement = test::colocated(ranks, 8);

  const ProcessorWatch watch;
  const RoleShards from(catalogue, trainer);
  const RoleShards to(catalogue, inference);
  const double index = watch.seconds();
  const Planner planner(catalogue, from, to, placement);
  const double routes = watch.seconds();
  const auto part = planner.part(ranks / 2);
  const double own = watch.seconds();

  std::vector<uint64_t> sent(ranks, 0);
  uint64_t pieces = 0;
  planner.for_each_flow([&](const Flow& flow) {
    pieces += flow.pieces;
    if (flow.near != Near::kDevice) sent[flow.source] += flow.bytes;
  });
  const double all = watch.seconds();
  fmt::print(
      "{:>6} {:>8} {:>7} {:>9.1f} {:>9.1f} {:>9.1f} {:>9.1f} {:>9.0f} {:>9} {:>10} {:>8.3f}\n",
      ranks, catalogue.tensors().size(), planner.kinds(), index * 1e3, (routes - index) * 1e3,
      own * 1e3, all * 1e3, peak_megabytes(), part.pieces.size(), pieces, imbalance(sent));
}

int run(uint32_t most) {
  fmt::print("{:>6} {:>8} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8}\n", "ranks",
             "tensors", "kinds", "layouts", "routes", "one rank", "cluster", "memory", "pieces",
             "pieces", "max/mean");
  fmt::print("{:>6} {:>8} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8}\n", "", "", "",
             "(ms)", "(ms)", "(ms)", "(ms)", "(MB peak)", "one rank", "cluster", "sent");
  for (uint32_t ranks = 128; ranks <= most; ranks *= 2) measure(ranks, 384);
  for (const uint64_t experts : {64, 128, 256}) measure(most, experts);
  return 0;
}

}  // namespace
}  // namespace awex

int main(int argc, char** argv) {
  const int most = argc > 1 ? std::atoi(argv[1]) : 1024;
  if (most >= 128 && most <= 65536) return awex::run(static_cast<uint32_t>(most));
  fmt::print(stderr, "usage: plan_scaling [MAX_RANKS], from 128 to 65536\n");
  return 2;
}
