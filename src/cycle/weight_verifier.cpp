#include "cycle/weight_verifier.hpp"

#include <algorithm>
#include <utility>

namespace awex {
namespace {

constexpr size_t kNamedMismatches = 8;

}  // namespace

WeightVerifier::WeightVerifier(Job& job, const Setup& setup, Kernels& kernels,
                               const std::byte* trainer_weights)
    : job_(job), setup_(setup), kernels_(kernels) {
  const Peer& me = job.peers()[static_cast<size_t>(job.rank())];
  role_ = me.role;
  if (role_ != Role::kTrainer) return;
  const auto views = shard_views(*setup.held, setup.trainer_here, trainer_weights);
  for (const auto& view : views) bytes_ += view.rows * view.cols * view.element_size;
  batch_ = kernels.prepare_digests(views, digest_slots(*setup.held));
}

uint64_t WeightVerifier::digest() {
  batch_->run();
  kernels_.wait("the digest of the weights", job_.deadline(), job_);
  return bytes_;
}

std::span<const uint64_t> WeightVerifier::sums() const {
  return batch_ ? batch_->sums() : std::span<const uint64_t>();
}

void WeightVerifier::verify(std::span<const uint64_t> mine,
                            const std::optional<WrongElement>& wrong_element,
                            std::optional<DigestReport>& report) {
  const auto sums = reduce_sums(mine);
  const ByteVerdict verdict{wrong_element ? 1 : 0, wrong_element.value_or(WrongElement{})};
  const auto verdicts = job_.all_gather_value(verdict, "the comparison of bytes");
  const size_t half = sums.size() / 2;
  const auto result =
      compare_digests(*setup_.held, std::span(sums).first(half), setup_.trainer_copies,
                      std::span(sums).subspan(half), setup_.inference_copies);
  report = report_of(result);
  refuse_wrong_bytes(verdicts);
  refuse_wrong_digests(result);
}

DigestReport WeightVerifier::report_of(const DigestComparison& result) const {
  const auto& tensors = setup_.held->tensors();
  DigestReport report;
  report.tensors = tensors.size();
  report.model = result.model;
  report.mismatched = result.wrong_tensors.size();
  for (const uint32_t t : result.wrong_tensors) {
    if (report.mismatches.size() == kNamedMismatches) break;
    report.mismatches.push_back(tensors[t].name);
  }
  return report;
}

/// The trainers' sums over all ranks, then inference's.
std::vector<uint64_t> WeightVerifier::reduce_sums(std::span<const uint64_t> mine) {
  std::vector<uint64_t> sums(2 * mine.size(), 0);
  std::copy(mine.begin(), mine.end(),
            sums.begin() + static_cast<ptrdiff_t>(role_ == Role::kTrainer ? 0 : mine.size()));
  job_.all_reduce_sum(sums, "the digests of all ranks");
  return sums;
}

void WeightVerifier::refuse_wrong_bytes(const std::vector<ByteVerdict>& verdicts) const {
  for (size_t rank = 0; rank < verdicts.size(); ++rank) {
    if (verdicts[rank].is_wrong == 0) continue;
    const auto& name = setup_.held->tensors()[verdicts[rank].element.tensor].name;
    Error error(ExitCode::kMismatch,
                fmt::format("these weights are not the trainer's: {} differs first at element {}",
                            name, verdicts[rank].element.index),
                "they are poisoned until an update is committed; the trainer's are whole");
    error.context() = job_.context_of(static_cast<int>(rank));
    job_.fail_together(std::move(error).about_tag("weights").about_tensor(name));
  }
}

void WeightVerifier::refuse_wrong_digests(const DigestComparison& result) const {
  const auto& tensors = setup_.held->tensors();
  if (!result.diverged_tensors.empty()) {
    const auto& name = tensors[result.diverged_tensors.front()].name;
    job_.fail_together(
        Error(ExitCode::kMismatch,
              fmt::format("the trainer's own replicas differ in {} of {} tensors, first in {}",
                          result.diverged_tensors.size(), tensors.size(), name),
              "data-parallel ranks have drifted apart: look at the trainer")
            .about_tag("weights")
            .about_tensor(name));
  }
  if (!result.wrong_tensors.empty()) {
    const auto& name = tensors[result.wrong_tensors.front()].name;
    job_.fail_together(
        Error(ExitCode::kMismatch,
              fmt::format("inference differs from the trainer in {} of {} tensors, first in {}",
                          result.wrong_tensors.size(), tensors.size(), name),
              "its weights are poisoned until an update is committed; the trainer's are whole; "
              "--verify full finds the first wrong element")
            .about_tag("weights")
            .about_tensor(name));
  }
}

}  // namespace awex
