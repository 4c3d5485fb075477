#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace awex {

/// What a message between ranks is.
enum Tag : int {
  kVerdictTag = 1,
  kOutcomeTag,
  kArrivalTag,
  kFailureTag,
  kDataTag,
  kOrderTag,
  kProgressTag,
  kComingTag,
  kGoingTag,
  kHereTag,
  kRollCallTag
};

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

template <class T>
std::span<std::byte> writable_bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

/// A message that MPI sends or receives, and the memory that it uses for it.
struct OpenRequest {
  MPI_Request request = MPI_REQUEST_NULL;
  int rank = 0;  ///< The other end.
  bool receives = false;
  std::span<std::byte> target;         ///< Where a receiver wants the bytes, if not in `memory`.
  std::vector<std::byte> own;          ///< The message, or nothing
  std::shared_ptr<const void> memory;  ///< where this owns it.
};

/// All messages of a communicator: they are counted, and what a failed wait leaves open is kept
/// with its memory, so that the ranks together can bring every message to its end. Nothing of MPI's
/// can then touch memory that is freed, and no message is left that a later wait could take for its
/// own.
class Traffic {
 public:
  /// Begins anew with a communicator of `ranks` ranks, on which nothing has been sent yet.
  void begin(MPI_Comm comm, int ranks);
  [[nodiscard]] MPI_Comm comm() const { return comm_; }

  void count_sent(int to) { ++sent_.at(static_cast<size_t>(to)); }
  void count_received(int from) { ++received_.at(static_cast<size_t>(from)); }
  /// Messages to each rank.
  [[nodiscard]] const std::vector<uint64_t>& sent() const { return sent_; }

  /// Takes over a request that nobody waits for any more. Cancels it if it receives: then it ends
  /// although no message comes.
  void abandon(OpenRequest open);
  /// Lets abandoned requests make progress and takes in messages that nobody wants. Returns whether
  /// none is open and from each rank as many messages have come as it has sent. To be called on all
  /// ranks until it is true on all.
  [[nodiscard]] bool settle(const std::vector<uint64_t>& sent_here);
  /// Receives a message that nobody wants, into memory of its own.
  void take_stray(MPI_Message message, const MPI_Status& status);

 private:
  [[nodiscard]] bool is_over(OpenRequest& open);
  void take_strays();

  MPI_Comm comm_ = MPI_COMM_NULL;
  std::vector<uint64_t> sent_;
  std::vector<uint64_t> received_;
  std::list<OpenRequest> abandoned_;
};

/// Point-to-point requests of one wait. Without `memory`, bytes travel through memory of MPI's
/// side: spans may be freed when the wait has failed. With it they travel directly, and `memory`
/// must own all of them. What is open when it is destroyed is left to the traffic.
///
/// A message that does not have the size of what receives it is an error of the receiver. Open MPI
/// 4.1 writes one of 4 KiB and more behind too small a receiver, within a node and over TCP: so the
/// size is looked at first, of messages of kDataTag, whose sizes both ends compute. All others have
/// the size of a record, or one that the other end has told.
class Requests {
 public:
  explicit Requests(Traffic& traffic, std::shared_ptr<const void> memory = nullptr)
      : traffic_(traffic), memory_(std::move(memory)) {}
  Requests(const Requests&) = delete;
  Requests& operator=(const Requests&) = delete;
  Requests(Requests&&) = delete;
  Requests& operator=(Requests&&) = delete;
  ~Requests();

  void send(std::span<const std::byte> bytes, int rank, Tag tag);
  /// `bytes` are written once `test` has seen them arrive. Messages of kDataTag are only begun to
  /// be received by `test`.
  void receive(std::span<std::byte> bytes, int rank, Tag tag);

  /// Lets MPI make progress. Returns whether all are done.
  [[nodiscard]] bool test();
  /// The ranks that open requests wait for, in order, each once.
  [[nodiscard]] std::vector<int> missing() const;

 private:
  void add(MPI_Request request, OpenRequest open);
  void begin_receives();
  [[nodiscard]] bool begin_receive(size_t index);
  void finish(size_t index, bool failed);

  Traffic& traffic_;
  std::shared_ptr<const void> memory_;
  std::vector<MPI_Request> requests_;
  std::vector<OpenRequest> open_;  ///< By request.
  std::vector<size_t> awaited_;    ///< Of them those that MPI does not receive yet, in order.
  std::vector<bool> is_silent_;    ///< By rank: nothing has come from it this time.
  std::vector<int> done_;          ///< Room for MPI_Testsome, as
  std::vector<MPI_Status> statuses_;
};

/// Small messages that nobody waits for; kept until MPI has sent them.
class Outbox {
 public:
  void send(std::span<const std::byte> bytes, int rank, Tag tag, MPI_Comm comm);
  /// Lets MPI send, and forgets what is sent.
  void push() noexcept;

 private:
  struct Letter {
    std::vector<std::byte> bytes;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  std::list<Letter> letters_;
};

/// The other end of outboxes: receives the next letter of a kind that has come, without waiting.
/// All have the size of `bytes`. Returns its sender, or nothing.
[[nodiscard]] std::optional<int> receive_letter(std::span<std::byte> bytes, Tag tag, MPI_Comm comm);

/// Passes all that have come to `take(record, sender)`.
template <class Record, class Take>
void take_letters(Tag tag, MPI_Comm comm, const Take& take) {
  Record record;
  while (const auto sender = receive_letter(writable_bytes_of(record), tag, comm)) {
    take(record, *sender);
  }
}

}  // namespace awex
