#include "comm/recovery.hpp"

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "comm/mpi_check.hpp"
#include "comm/requests.hpp"

namespace awex {
namespace {

/// A record and one number for each rank, as a message.
template <class Record>
std::vector<std::byte> pack(const Record& record, std::span<const uint64_t> numbers) {
  std::vector<std::byte> message(sizeof(Record) + numbers.size_bytes());
  std::memcpy(message.data(), &record, sizeof(Record));
  std::memcpy(message.data() + sizeof(Record), numbers.data(), numbers.size_bytes());
  return message;
}

template <class Record>
Record record_of(std::span<const std::byte> message) {
  Record record;
  std::memcpy(&record, message.data(), sizeof(Record));
  return record;
}

template <class Record>
std::vector<uint64_t> numbers_of(std::span<const std::byte> message) {
  std::vector<uint64_t> numbers((message.size() - sizeof(Record)) / sizeof(uint64_t));
  std::memcpy(numbers.data(), message.data() + sizeof(Record), numbers.size() * sizeof(uint64_t));
  return numbers;
}

}  // namespace

Error Recovery::recover(const Error& error) {
  // What all ranks have thrown need not be told.
  if (!failures_.is_agreed()) failures_.announce(error);
  const Coming mine{failures_.known() ? failures_.verdict() : to_wire(error, world_.now()),
                    collectives_.begun(), failures_.told_to_end(), world_.now()};
  if (failures_.ends_job()) failures_.fail(error);
  // Ranks that do not see rank 0's process leave it to those who do.
  const bool sees_rank_zero = world_.node_of(0) == world_.node_of(world_.rank());
  const bool timeout_is_spent =
      mine.verdict.code == static_cast<int32_t>(ExitCode::kDeadline) && sees_rank_zero;
  Meeting meeting{mine,
                  fmt::format("come to the recovery from \"{}\"", text_of(mine.verdict.message)),
                  SignsOfLife(world_, progress_, timeout_is_spent)};
  failures_.begin_recovery();
  try {
    const auto verdict = meet(meeting);
    end_messages(verdict);
    world_.begin_epoch(make_communicator());
    collectives_.begin_epoch();
    progress_.forget();
    if (verdict.going.told_to_end) failures_.set_told_to_end();
    failures_.end_recovery();
    return from_wire(verdict.going.cause);
  } catch (const Error& fatal) {
    failures_.announce_and_fail(fatal);
  }
}

Recovery::Verdict Recovery::meet(Meeting& meeting) {
  return world_.rank() == 0 ? lead(meeting) : follow(meeting);
}

void Recovery::give_up_on_lost(Meeting& meeting, const std::vector<int>& missing) {
  const auto lost = meeting.signs.lost_among(missing);
  if (lost.empty()) return;
  failures_.give_up_on(lost);
  failures_.announce_and_fail(world_.late(lost, meeting.deed, meeting.signs.waited()));
}

Recovery::Verdict Recovery::lead(Meeting& meeting) {
  const auto& mine = meeting.mine;
  const auto size = static_cast<size_t>(world_.size());
  std::vector<std::vector<std::byte>> messages(
      size, pack(mine, world_.traffic().sent()));  // the others' are overwritten
  Requests inbox(control_);
  for (int other = 1; other < world_.size(); ++other) {
    inbox.receive(messages[static_cast<size_t>(other)], other, kComingTag);
  }
  waits_.wait_for_others(inbox, meeting.deed, {},
                         [&](const auto& missing) { give_up_on_lost(meeting, missing); });

  Going going{mine.verdict, mine.begun, mine.told_to_end};
  std::vector<WireError> verdicts;
  std::vector<double> came_s;
  std::vector<std::vector<uint64_t>> sent_to(size);
  for (const auto& message : messages) {
    const auto coming = record_of<Coming>(message);
    verdicts.push_back(coming.verdict);
    came_s.push_back(coming.time_s);
    if (coming.begun.sequence > going.last.sequence) going.last = coming.begun;
    going.told_to_end = going.told_to_end || coming.told_to_end;
    const auto sent = numbers_of<Coming>(message);
    for (size_t to = 0; to < size; ++to) sent_to[to].push_back(sent[to]);
  }
  going.cause = *first_cause(verdicts);
  name_last(going.cause, came_s);
  Requests answers(control_);
  for (int other = 1; other < world_.size(); ++other) {
    answers.send(pack(going, sent_to[static_cast<size_t>(other)]), other, kGoingTag);
  }
  waits_.wait_for_others(answers, "taken the first cause", {});
  return {going, sent_to[0]};
}

/// Who is late for one rank may have waited for another itself. That one comes well after the
/// others.
void Recovery::name_last(WireError& cause, const std::vector<double>& came_s) const {
  constexpr Seconds kWellAfter{0.25};
  if (cause.code != static_cast<int32_t>(ExitCode::kDeadline)) return;
  const auto last = std::max_element(came_s.begin(), came_s.end());
  const double after_s = *last - cause.time_s;
  const auto name = world_.describe(static_cast<int>(last - came_s.begin()));
  const auto message = text_of(cause.message);
  if (after_s < kWellAfter.count() || message.find(name) != std::string::npos) return;
  cause.message = fixed_text<std::tuple_size_v<decltype(cause.message)>>(
      fmt::format("{}; {} came to the recovery {} later", message, name, format_seconds(after_s)));
}

Recovery::Verdict Recovery::follow(Meeting& meeting) {
  const auto size = static_cast<size_t>(world_.size());
  std::vector<std::byte> answer(sizeof(Going) + size * sizeof(uint64_t));
  Requests requests(control_);
  requests.receive(answer, 0, kGoingTag);
  requests.send(pack(meeting.mine, world_.traffic().sent()), 0, kComingTag);
  const auto answered = [&] {
    if (requests.test()) return true;
    give_up_on_lost(meeting, {0});
    return false;
  };
  waits_.wait_for_rank_zero(answered, meeting.deed);
  return {record_of<Going>(answer), numbers_of<Going>(answer)};
}

void Recovery::end_messages(const Verdict& verdict) {
  collectives_.join(verdict.going.last);
  const auto settled = [&] {
    const bool no_call = collectives_.settle();
    return world_.traffic().settle(verdict.sent_here) && no_call;
  };
  waits_.wait_for_all(settled, "the end of the failed command's messages");
}

MPI_Comm Recovery::make_communicator() {
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(MPI_Comm_idup(MPI_COMM_WORLD, &comm, &request), "make the next epoch's communicator");
  const auto made = [&] {
    int done = 0;
    AWEX_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "make the next epoch's communicator");
    return done != 0;
  };
  waits_.wait_for_all(made, "the next epoch's communicator");
  return comm;
}

}  // namespace awex
