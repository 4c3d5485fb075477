#include "comm/requests.hpp"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "base/checked.hpp"
#include "base/units.hpp"
#include "comm/mpi_check.hpp"

namespace awex {

void Traffic::begin(MPI_Comm comm, int ranks) {
  comm_ = comm;
  sent_.assign(static_cast<size_t>(ranks), 0);
  received_ = sent_;
}

void Traffic::abandon(OpenRequest open) {
  // A message that has begun to arrive still does: the memory is kept until then.
  if (open.receives) MPI_Cancel(&open.request);
  abandoned_.push_back(std::move(open));
}

bool Traffic::settle(const std::vector<uint64_t>& sent_here) {
  take_strays();
  abandoned_.remove_if([this](auto& open) { return is_over(open); });
  return abandoned_.empty() && received_ == sent_here;
}

bool Traffic::is_over(OpenRequest& open) {
  int done = 0;
  MPI_Status status{};
  const int error = MPI_Test(&open.request, &done, &status);
  const bool does_not_fit = error == MPI_ERR_TRUNCATE;  // but has come
  if (!does_not_fit) AWEX_MPI(error, "end a message with rank {}", open.rank);
  if (done == 0) return false;
  int cancelled = 0;
  AWEX_MPI(MPI_Test_cancelled(&status, &cancelled), "learn how a message with rank {} ended",
           open.rank);
  if (open.receives && cancelled == 0) count_received(open.rank);
  return true;
}

void Traffic::take_strays() {
  while (true) {
    int found = 0;
    MPI_Message message = MPI_MESSAGE_NULL;
    MPI_Status status{};
    AWEX_MPI(MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &found, &message, &status),
             "look for messages that nobody waits for");
    if (found == 0) return;
    take_stray(message, status);
  }
}

void Traffic::take_stray(MPI_Message message, const MPI_Status& status) {
  int bytes = 0;
  AWEX_MPI(MPI_Get_count(&status, MPI_BYTE, &bytes), "learn a message's size");
  auto& open = abandoned_.emplace_back();
  open.rank = status.MPI_SOURCE;
  open.receives = true;
  open.own.resize(static_cast<size_t>(bytes));
  AWEX_MPI(MPI_Imrecv(open.own.data(), bytes, MPI_BYTE, &message, &open.request),
           "take a message of rank {} that nobody waits for", open.rank);
}

Requests::~Requests() {
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    open_[i].request = requests_[i];
    traffic_.abandon(std::move(open_[i]));
  }
}

void Requests::send(std::span<const std::byte> bytes, int rank, Tag tag) {
  OpenRequest open{.rank = rank, .receives = false, .target = {}, .own = {}, .memory = memory_};
  if (!memory_) open.own.assign(bytes.begin(), bytes.end());
  const auto* data = memory_ ? bytes.data() : open.own.data();
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(
      MPI_Isend(data, narrow<int>(bytes.size()), MPI_BYTE, rank, tag, traffic_.comm(), &request),
      "send {} to rank {}", format_bytes(bytes.size()), rank);
  traffic_.count_sent(rank);
  add(request, std::move(open));
}

void Requests::receive(std::span<std::byte> bytes, int rank, Tag tag) {
  OpenRequest open{.rank = rank, .receives = true, .target = bytes, .own = {}, .memory = memory_};
  if (!memory_) open.own.resize(bytes.size());
  auto* data = memory_ ? bytes.data() : open.own.data();
  MPI_Request request = MPI_REQUEST_NULL;
  if (tag == kDataTag) {
    awaited_.push_back(requests_.size());
    return add(request, std::move(open));
  }
  AWEX_MPI(
      MPI_Irecv(data, narrow<int>(bytes.size()), MPI_BYTE, rank, tag, traffic_.comm(), &request),
      "receive {} from rank {}", format_bytes(bytes.size()), rank);
  add(request, std::move(open));
}

/// Messages of one rank come in the order in which they are sent: only the first that is awaited of
/// each is looked for.
void Requests::begin_receives() {
  is_silent_.assign(traffic_.sent().size(), false);
  std::erase_if(awaited_, [this](size_t index) {
    auto silent = is_silent_.at(static_cast<size_t>(open_[index].rank));
    if (!silent) silent = !begin_receive(index);
    return !silent;
  });
}

/// Whether the message has come.
bool Requests::begin_receive(size_t index) {
  const auto& open = open_[index];
  int found = 0;
  int bytes = 0;
  MPI_Message message = MPI_MESSAGE_NULL;
  MPI_Status status{};
  AWEX_MPI(MPI_Improbe(open.rank, kDataTag, traffic_.comm(), &found, &message, &status),
           "look for a message of rank {}", open.rank);
  if (found == 0) return false;
  AWEX_MPI(MPI_Get_count(&status, MPI_BYTE, &bytes), "learn a message's size");
  const auto room = open.target.size();
  if (static_cast<size_t>(bytes) != room) {
    traffic_.take_stray(message, status);
    throw runtime_error(fmt::format("cannot receive {} from rank {}, which has sent {}",
                                    format_bytes(room), open.rank,
                                    format_bytes(static_cast<size_t>(bytes))));
  }
  auto* data = memory_ ? open.target.data() : open_[index].own.data();
  AWEX_MPI(MPI_Imrecv(data, bytes, MPI_BYTE, &message, &requests_[index]),
           "receive {} from rank {}", format_bytes(room), open.rank);
  return true;
}

bool Requests::test() {
  if (!awaited_.empty()) begin_receives();
  int count = 0;
  int error = MPI_Testsome(narrow<int>(requests_.size()), requests_.data(), &count, done_.data(),
                           statuses_.data());
  if (count == MPI_UNDEFINED) return awaited_.empty();
  const bool some_failed = error == MPI_ERR_IN_STATUS;
  for (size_t i = 0; i < narrow<size_t>(count); ++i) {
    const int own = some_failed ? statuses_[i].MPI_ERROR : MPI_SUCCESS;
    finish(static_cast<size_t>(done_[i]), own != MPI_SUCCESS);
    if (own != MPI_SUCCESS) error = own;
  }
  if (error != MPI_SUCCESS) {
    throw_failed_call(fmt::format("make progress with {} messages", requests_.size()),
                      "MPI_Testsome", describe_mpi(error));
  }
  return awaited_.empty() && std::all_of(requests_.begin(), requests_.end(),
                                         [](auto request) { return request == MPI_REQUEST_NULL; });
}

/// A message that did not fit has come all the same.
void Requests::finish(size_t index, bool failed) {
  const auto& open = open_.at(index);
  if (!open.receives) return;
  traffic_.count_received(open.rank);
  if (!failed && !open.own.empty())
    std::memcpy(open.target.data(), open.own.data(), open.own.size());
}

std::vector<int> Requests::missing() const {
  std::set<int> ranks;
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] != MPI_REQUEST_NULL) ranks.insert(open_[i].rank);
  }
  for (const size_t index : awaited_) ranks.insert(open_[index].rank);
  return {ranks.begin(), ranks.end()};
}

void Requests::add(MPI_Request request, OpenRequest open) {
  requests_.push_back(request);
  open_.push_back(std::move(open));
  done_.push_back(0);
  statuses_.emplace_back();
}

void Outbox::send(std::span<const std::byte> bytes, int rank, Tag tag, MPI_Comm comm) {
  push();
  auto& letter = letters_.emplace_back();
  letter.bytes.assign(bytes.begin(), bytes.end());
  AWEX_MPI(MPI_Isend(letter.bytes.data(), narrow<int>(letter.bytes.size()), MPI_BYTE, rank, tag,
                     comm, &letter.request),
           "tell rank {} of what happens here", rank);
}

std::optional<int> receive_letter(std::span<std::byte> bytes, Tag tag, MPI_Comm comm) {
  int found = 0;
  MPI_Status status{};
  AWEX_MPI(MPI_Iprobe(MPI_ANY_SOURCE, tag, comm, &found, &status),
           "look for what other ranks tell");
  if (found == 0) return std::nullopt;
  AWEX_MPI(MPI_Recv(bytes.data(), narrow<int>(bytes.size()), MPI_BYTE, status.MPI_SOURCE, tag, comm,
                    MPI_STATUS_IGNORE),
           "receive what rank {} tells", status.MPI_SOURCE);
  return status.MPI_SOURCE;
}

void Outbox::push() noexcept {
  letters_.remove_if([](Letter& letter) {
    int done = 0;
    return MPI_Test(&letter.request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || done != 0;
  });
}

}  // namespace awex
