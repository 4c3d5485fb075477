#include "cycle/weight_verifier.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "base/checked.hpp"

namespace awex {
namespace {

constexpr size_t kNamedMismatches = 8;
constexpr size_t kNamedRanks = 4;

}  // namespace

WeightVerifier::WeightVerifier(Job& job, const HandOver& hand_over, Kernels& kernels,
                               const PlacedMemory& trainer_weights)
    : job_(job), hand_over_(hand_over), model_(hand_over.model), kernels_(kernels) {
  const Peer& me = job.peers()[static_cast<size_t>(job.rank())];
  role_ = me.role;
  const bool trains = role_ == Role::kTrainer;
  replicas_ = held_replicas(trains ? hand_over.trainer_here : hand_over.inference_here);
  if (trains) place(trainer_weights);
}

void WeightVerifier::place(const PlacedMemory& trainer_weights) {
  const auto views = shard_views(*model_.held, hand_over_.trainer_here, trainer_weights);
  bytes_ = 0;
  for (const auto& view : views) bytes_ += view.rows * view.cols * view.element_size;
  batch_ = kernels_.prepare_digests(views, narrow<uint32_t>(replicas_.size()));
}

uint64_t WeightVerifier::digest() {
  batch_->run();
  kernels_.wait("the digest of the weights", job_.deadline(), job_);
  return bytes_;
}

std::vector<uint64_t> WeightVerifier::digest_once(const PlacedMemory& weights) {
  const auto views = shard_views(*model_.held, hand_over_.inference_here, weights);
  const auto batch = kernels_.prepare_digests(views, narrow<uint32_t>(replicas_.size()));
  batch->run();
  kernels_.wait("the digest of what inference has loaded", job_.deadline(), job_);
  return {batch->sums().begin(), batch->sums().end()};
}

std::span<const uint64_t> WeightVerifier::sums() const {
  return batch_ ? batch_->sums() : std::span<const uint64_t>();
}

void WeightVerifier::verify(std::span<const uint64_t> mine,
                            const std::optional<WrongElement>& wrong_element,
                            std::optional<DigestReport>& report, Origin origin) {
  const auto sums = reduce_sums(mine);
  const ByteVerdict verdict{wrong_element ? 1 : 0, wrong_element.value_or(WrongElement{})};
  const auto verdicts = job_.all_gather_value(verdict, "the comparison of bytes");
  const size_t half = sums.size() / 2;
  const auto result =
      compare_digests(*model_.held, std::span(sums).first(half), model_.trainer_replicas,
                      std::span(sums).subspan(half), model_.inference_replicas);
  report = report_of(result);
  refuse_wrong_bytes(verdicts);
  refuse_diverged_replicas(result, mine);
  refuse_wrong_replicas(result, mine, std::span(sums).first(half), origin);
}

DigestReport WeightVerifier::report_of(const DigestComparison& result) const {
  const auto& tensors = model_.held->tensors();
  DigestReport report;
  report.tensors = tensors.size();
  report.model = result.model;
  std::vector<uint32_t> wrong;
  std::set_union(result.wrong_tensors.begin(), result.wrong_tensors.end(),
                 result.diverged_tensors.begin(), result.diverged_tensors.end(),
                 std::back_inserter(wrong));
  report.mismatched = wrong.size();
  for (const uint32_t t : wrong) {
    if (report.mismatches.size() == kNamedMismatches) break;
    report.mismatches.push_back(tensors[t].name);
  }
  return report;
}

/// The trainers' sums over all ranks, then inference's.
std::vector<uint64_t> WeightVerifier::reduce_sums(std::span<const uint64_t> mine) {
  const auto terms = rank_terms(model_.held->tensors().size(), replicas_, mine);
  std::vector<uint64_t> sums(2 * terms.size(), 0);
  std::copy(terms.begin(), terms.end(),
            sums.begin() + static_cast<ptrdiff_t>(role_ == Role::kTrainer ? 0 : terms.size()));
  job_.all_reduce_sum(sums, "the digests of all ranks");
  return sums;
}

void WeightVerifier::refuse_wrong_bytes(const std::vector<ByteVerdict>& verdicts) const {
  for (size_t rank = 0; rank < verdicts.size(); ++rank) {
    if (verdicts[rank].is_wrong == 0) continue;
    const auto& name = model_.held->tensors()[verdicts[rank].element.tensor].name;
    Error error(ExitCode::kMismatch,
                fmt::format("these weights are not the trainer's: {} differs first at element {}",
                            name, verdicts[rank].element.index),
                "they are poisoned until an update is committed; the trainer's are whole");
    error.context() = job_.context_of(static_cast<int>(rank));
    job_.fail_together(std::move(error).about_tag("weights").about_tensor(name));
  }
}

void WeightVerifier::refuse_diverged_replicas(const DigestComparison& result,
                                              std::span<const uint64_t> mine) {
  if (result.diverged_tensors.empty()) return;
  const uint32_t first = result.diverged_tensors.front();
  const auto& tensors = model_.held->tensors();
  const auto odd = odd_ranks(gather_replicas(first, Role::kTrainer, mine), std::nullopt);
  blame(fmt::format("the trainer's own replicas differ in {} of {} tensors, first in {}{}",
                    result.diverged_tensors.size(), tensors.size(), tensors[first].name,
                    odd.empty() ? ", where no bytes are those of most replicas" : ""),
        "ranks that hold copies of it (data-parallel, or tensor-parallel as of norms) have drifted "
        "apart: look at how the trainer reduces its gradients",
        odd, first);
}

void WeightVerifier::refuse_wrong_replicas(const DigestComparison& result,
                                           std::span<const uint64_t> mine, RoleSums trainer,
                                           Origin origin) {
  if (result.wrong_tensors.empty()) return;
  const uint32_t first = result.wrong_tensors.front();
  const auto& tensors = model_.held->tensors();
  const auto odd = odd_ranks(gather_replicas(first, Role::kInference, mine), trainer[first]);
  const bool is_loaded = origin == Origin::kLoaded;
  blame(fmt::format("{} in {} of {} tensors, first in {}",
                    is_loaded ? "what inference has loaded differs from what the trainer has"
                              : "inference differs from the trainer",
                    result.wrong_tensors.size(), tensors.size(), tensors[first].name),
        is_loaded
            ? "it permutes, packs or pads weights when it loads them, or has loaded others than "
              "the trainer has now: let it load a checkpoint of those, or start the job with "
              "--admission off"
            : "its weights are poisoned until an update is committed; the trainer's are whole; "
              "--verify full finds the first wrong element",
        odd, first);
}

std::vector<ReplicaSum> WeightVerifier::gather_replicas(uint32_t tensor, Role role,
                                                        std::span<const uint64_t> mine) {
  std::vector<ReplicaSum> own;
  for (size_t i = 0; i < replicas_.size() && role == role_; ++i) {
    if (replicas_[i].tensor == tensor) own.push_back({job_.rank(), replicas_[i], mine[i]});
  }
  uint64_t most = own.size();
  job_.all_reduce_max({&most, 1}, "the replicas of a wrong tensor");
  own.resize(most, ReplicaSum{-1, {}, 0});
  const auto bytes = job_.all_gather(std::as_bytes(std::span(own)), "the digests of its replicas");
  std::vector<ReplicaSum> all(bytes.size() / sizeof(ReplicaSum));
  std::memcpy(all.data(), bytes.data(), bytes.size());
  std::erase_if(all, [](const ReplicaSum& replica) { return replica.rank < 0; });
  return all;
}

void WeightVerifier::blame(std::string message, const char* hint, const std::vector<int>& ranks,
                           uint32_t tensor) const {
  if (ranks.size() == 1) {
    message += "; this rank holds the wrong bytes";
  } else if (!ranks.empty()) {
    std::vector<std::string> names;
    for (const int rank : std::span(ranks).first(std::min(ranks.size(), kNamedRanks))) {
      names.push_back(job_.describe(rank));
    }
    if (ranks.size() > kNamedRanks)
      names.push_back(fmt::format("{} more", ranks.size() - kNamedRanks));
    message += fmt::format("; wrong bytes are held by {}", fmt::join(names, ", "));
  }
  Error error(ExitCode::kMismatch, message, hint);
  if (ranks.size() == 1) error.context() = job_.context_of(ranks.front());
  job_.fail_together(
      std::move(error).about_tag("weights").about_tensor(model_.held->tensors()[tensor].name));
}

}  // namespace awex
