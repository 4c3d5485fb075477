#include "transfer/move/rounds_in_flight.hpp"

#include "memory/cuda_check.hpp"

namespace awex {
namespace {

constexpr auto kDeed = "finished the exchange of weights";

}  // namespace

bool RoundsInFlight::is_done(size_t round) const {
  const auto has_passed = [round](const Events& events) {
    return awex::is_done(cudaEventQuery(events[round % kMost].get()), "cudaEventQuery",
                         "the exchange of weights");
  };
  return has_passed(sent_) && has_passed(received_);
}

void RoundsInFlight::make_room(size_t round, const Check& check) const {
  if (round < kMost) return;
  const size_t before = round - kMost;
  job_.wait_for([&] { return check() && is_done(before); },
                [&] {
                  return Late{exchange_.ranks_met(before, before + 1), kDeed};
                });
}

void RoundsInFlight::wait_for_all(cudaStream_t stream, const Check& check) const {
  const auto is_idle = [&] {
    return check() &&
           awex::is_done(cudaStreamQuery(stream), "cudaStreamQuery", "the transfer of weights");
  };
  job_.wait_for(is_idle, [this] { return Late{late_ranks(), kDeed}; });
}

/// The other ends of the first round that is under way; this rank itself where none is.
std::vector<int> RoundsInFlight::late_ranks() const {
  const size_t end = exchange_.rounds().size();
  for (size_t round = end > kMost ? end - kMost : 0; round < end; ++round) {
    if (!is_done(round)) return exchange_.ranks_met(round, round + 1);
  }
  return {job_.rank()};
}

}  // namespace awex
