#pragma once

#include <mpi.h>

#include <cstddef>
#include <span>
#include <vector>

namespace awex {

/// What a message between ranks is.
enum Tag : int { kVerdictTag = 1, kOutcomeTag, kArrivalTag, kFailureTag, kDataTag, kProgressTag };

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

template <class T>
std::span<std::byte> writable_bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

/// Point-to-point requests of one wait, each with the rank at its other end. What is still open
/// when it is destroyed is cancelled, so that MPI does not write to memory that its owner frees.
class Requests {
 public:
  explicit Requests(MPI_Comm comm) : comm_(comm) {}
  Requests(const Requests&) = delete;
  Requests& operator=(const Requests&) = delete;
  Requests(Requests&&) = delete;
  Requests& operator=(Requests&&) = delete;
  ~Requests();

  /// The bytes must stay until the message is done.
  void send(std::span<const std::byte> bytes, int rank, Tag tag);
  void receive(std::span<std::byte> bytes, int rank, Tag tag);

  /// Lets MPI make progress. Returns whether all are done.
  [[nodiscard]] bool test();
  /// The ranks that open requests wait for, in order, each once.
  [[nodiscard]] std::vector<int> missing() const;

 private:
  void add(MPI_Request request, int rank);

  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
  std::vector<int> ranks_;
  std::vector<int> done_;  ///< Room for MPI_Testsome.
};

}  // namespace awex
