#include "comm/agreement.hpp"

#include <vector>

namespace awex {
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
  Requests inbox(world_.traffic());
  for (int other = 1; other < world_.size(); ++other) {
    inbox.receive(writable_bytes_of(verdicts[static_cast<size_t>(other)]), other, kVerdictTag);
  }
  waits_.wait_for_others(inbox, fmt::format("finished phase '{}'", world_.phase()), verdicts);

  const auto* cause = first_cause(verdicts);
  const WireError outcome = cause != nullptr ? *cause : WireError{};
  Requests answers(world_.traffic());
  for (int other = 1; other < world_.size(); ++other) {
    answers.send(bytes_of(outcome), other, kOutcomeTag);
  }
  waits_.wait_for_others(answers, "taken the outcome", {});
  return outcome;
}

WireError Agreement::ask_for_outcome(const WireError& mine) {
  WireError outcome;
  Requests requests(world_.traffic());
  requests.receive(writable_bytes_of(outcome), 0, kOutcomeTag);
  requests.send(bytes_of(mine), 0, kVerdictTag);
  waits_.wait_for_rank_zero([&] { return requests.test(); },
                            world_.phase().empty()
                                ? "agreed with all ranks"
                                : fmt::format("ended phase '{}' for all ranks", world_.phase()));
  return outcome;
}

void Agreement::arrive(const std::string& what) {
  failures_.set_agreed(false);
  const auto deed = fmt::format("come to '{}'", what);
  Requests requests(world_.traffic());
  if (world_.rank() != 0) {
    requests.send({}, 0, kArrivalTag);
    waits_.wait_for_rank_zero([&] { return requests.test(); }, deed);
    return;
  }
  for (int other = 1; other < world_.size(); ++other) requests.receive({}, other, kArrivalTag);
  waits_.wait_for_others(requests, deed, {});
}

}  // namespace awex
