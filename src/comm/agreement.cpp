#include "comm/agreement.hpp"

#include <optional>
#include <vector>

#include "comm/mpi_check.hpp"

namespace awex {
namespace {

constexpr Seconds kAnswerGrace{1.0};

}  // namespace

void Agreement::agree(const WireError& mine) {
  failures_.set_agreed(false);
  const WireError outcome = world_.rank() == 0 ? decide(mine) : ask_for_outcome(mine);
  if (outcome.telling == Telling::kSuccess) return;
  failures_.set_agreed(true);
  throw from_wire(outcome);
}

WireError Agreement::decide(const WireError& mine) {
  std::vector<WireError> verdicts(static_cast<size_t>(world_.size()));
  verdicts[0] = mine;
  Requests inbox(world_.comm());
  for (int other = 1; other < world_.size(); ++other) {
    inbox.receive(writable_bytes_of(verdicts[static_cast<size_t>(other)]), other, kVerdictTag);
  }
  wait_for_others(inbox, fmt::format("finished phase '{}'", world_.phase()), verdicts);

  const auto* cause = first_cause(verdicts);
  const WireError outcome = cause != nullptr ? *cause : WireError{};
  Requests answers(world_.comm());
  for (int other = 1; other < world_.size(); ++other) {
    answers.send(bytes_of(outcome), other, kOutcomeTag);
  }
  wait_for_others(answers, "taken the outcome", {});
  return outcome;
}

WireError Agreement::ask_for_outcome(const WireError& mine) {
  WireError outcome;
  Requests requests(world_.comm());
  requests.receive(writable_bytes_of(outcome), 0, kOutcomeTag);
  requests.send(bytes_of(mine), 0, kVerdictTag);
  wait_for_rank_zero([&] { return requests.test(); },
                     fmt::format("ended phase '{}' for all ranks", world_.phase()));
  return outcome;
}

void Agreement::arrive(const std::string& what) {
  failures_.set_agreed(false);
  const auto deed = fmt::format("come to '{}'", what);
  Requests requests(world_.comm());
  if (world_.rank() != 0) {
    requests.send({}, 0, kArrivalTag);
    wait_for_rank_zero([&] { return requests.test(); }, deed);
    return;
  }
  for (int other = 1; other < world_.size(); ++other) requests.receive({}, other, kArrivalTag);
  wait_for_others(requests, deed, {});
}

/// On rank 0: waits until everyone's message is there. Otherwise fails with the first cause among
/// the `verdicts` that came, and if there is none, with the names of those who did not come.
void Agreement::wait_for_others(Requests& requests, const std::string& deed,
                                std::span<const WireError> verdicts) {
  const auto give_up = [&] {
    const auto* cause = first_cause(verdicts);
    const auto missing = requests.missing();
    failures_.give_up_on(missing);
    failures_.announce_and_fail(cause != nullptr ? from_wire(*cause) : world_.late(missing, deed));
  };
  const auto done = [&] {
    if (requests.test()) return true;
    failures_.listen();
    if (failures_.take_question()) give_up();
    return false;
  };
  waits_.wait(done, kRankZeroGrace, give_up);
}

/// On the other ranks: waits for what rank 0 must do first. When it takes too long, asks rank 0 who
/// is missing, and names rank 0 if it does not answer.
template <class Done>
void Agreement::wait_for_rank_zero(const Done& done, const std::string& deed) {
  std::optional<Deadline> answer;
  waits_.wait(done, kOthersGrace, [&] {
    if (!answer) {
      failures_.ask_rank_zero(world_.late({0}, deed));
      answer.emplace(kAnswerGrace);
    }
    if (!answer->expired()) return;
    failures_.give_up_on(0);
    failures_.announce_and_fail(world_.late({0}, deed));
  });
}

void Agreement::await_collective(MPI_Request& request, const std::string& what) {
  const auto done = [&] {
    int flag = 0;
    AWEX_MPI(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), "complete '{}'", what);
    return flag != 0;
  };
  if (world_.rank() != 0) return wait_for_rank_zero(done, fmt::format("completed '{}'", what));
  waits_.wait(done, kRankZeroGrace, [&] {
    failures_.announce_and_fail(
        Error(ExitCode::kDeadline,
              fmt::format("'{}' is not done after {}, though every rank came to it{}", what,
                          format_seconds(world_.timeout().count()), world_.describe_stopped()),
              kDeadlineHint));
  });
}

}  // namespace awex
