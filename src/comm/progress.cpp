#include "comm/progress.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "comm/requests.hpp"
#include "comm/waits.hpp"

namespace awex {
namespace {

// How often a rank tells of progress: the timeout is long against it.
constexpr Seconds kLongestTellInterval{0.25};
constexpr double kTellsPerTimeout = 20;

std::string describe(const WireProgress& progress) {
  const auto amount = progress.all_bytes == 0
                          ? format_bytes(progress.done_bytes)
                          : fmt::format("{} of {}", format_bytes(progress.done_bytes),
                                        format_bytes(progress.all_bytes));
  const auto file = text_of(progress.file);
  return fmt::format("{}: {} read{}", text_of(progress.what), amount,
                     file.empty() ? "" : ", last from " + file);
}

}  // namespace

void Progress::watch(Watcher watcher) {
  watcher_ = std::move(watcher);
  told_.clear();
}

void Progress::progressed(const WorkProgress& progress) {
  last_ = Clock::now();
  news_ = true;
  const bool turns = own_.ended || progress.ended;
  own_ = {fixed_text<64>(progress.what),
          fixed_text<512>(progress.file),
          progress.done_bytes,
          progress.all_bytes,
          world_.epoch(),
          progress.ended};
  if (world_.rank() == 0) show(0, own_);
  if (turns || last_ >= next_tell_) tell();
}

void Progress::exchange() {
  take_letters<WireProgress>(
      kProgressTag, world_.control(),
      [this](const WireProgress& progress, int from) { hear(progress, from); });
  if (!news_ || Clock::now() < next_tell_) return;
  // Nobody waits in a job at rest, whose ranks on other hosts may have ended: MPI ends who writes
  // to one of those.
  if (!failures_.is_at_rest()) tell();
}

/// Rank 0 tells all what it knows to go on; the others tell rank 0.
void Progress::tell() {
  news_ = false;
  next_tell_ = Clock::now() +
               as_duration(std::min(kLongestTellInterval, world_.timeout() / kTellsPerTimeout));
  if (world_.rank() != 0) return send(0);
  for (int other = 1; other < world_.size(); ++other) send(other);
}

void Progress::send(int to) {
  own_.epoch = world_.epoch();  // rank 0 also tells that others work
  outbox_.send(bytes_of(own_), to, kProgressTag, world_.control());
}

void Progress::hear(const WireProgress& progress, int from) {
  if (progress.epoch != world_.epoch()) return;
  last_ = Clock::now();
  if (world_.rank() == 0) {
    news_ = true;
    show(from, progress);
  }
  if (progress.ended) {
    working_.erase(from);
  } else {
    working_[from] = {progress, last_};
  }
}

/// Shows how far all ranks are together.
void Progress::show(int of, const WireProgress& progress) {
  told_[of] = progress;
  if (!watcher_) return;
  uint64_t done = 0;
  uint64_t all = 0;
  for (const auto& [other, work] : told_) {
    done += work.done_bytes;
    all += work.all_bytes;
  }
  watcher_(done, all);
}

void Progress::look_for_silent() {
  const auto limit = world_.timeout() + (world_.rank() == 0 ? kRankZeroGrace : kOthersGrace);
  for (const auto& [other, heard] : working_) {
    if (Clock::now() - heard.when < limit) continue;
    failures_.give_up_on(other);
    failures_.announce_and_fail(
        Error(ExitCode::kDeadline,
              fmt::format("{} has told of no progress for {}: {}{}", world_.describe(other),
                          format_seconds(world_.timeout().count()), describe(heard.progress),
                          world_.describe_stopped()),
              kDeadlineHint));
  }
}

bool Progress::is_working(int rank) const {
  const auto found = working_.find(rank);
  return found != working_.end() && Clock::now() - found->second.when < world_.timeout();
}

void Progress::forget() {
  working_.clear();
  told_.clear();
  watcher_ = nullptr;
  own_ = {};
  news_ = false;
}

bool Progress::overdue(const Deadline& deadline, Seconds grace) const {
  return deadline.expired() && Clock::now() - last_ >= world_.timeout() + grace;
}

}  // namespace awex
