#include "comm/requests.hpp"

#include <algorithm>
#include <set>

#include "base/checked.hpp"
#include "base/units.hpp"
#include "comm/mpi_check.hpp"

namespace awex {

Requests::~Requests() {
  for (auto& request : requests_) {
    if (request == MPI_REQUEST_NULL) continue;
    MPI_Cancel(&request);
    MPI_Request_free(&request);
  }
}

void Requests::send(std::span<const std::byte> bytes, int rank, Tag tag) {
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(MPI_Isend(bytes.data(), narrow<int>(bytes.size()), MPI_BYTE, rank, tag, comm_, &request),
           "send {} to rank {}", format_bytes(bytes.size()), rank);
  add(request, rank);
}

void Requests::receive(std::span<std::byte> bytes, int rank, Tag tag) {
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(MPI_Irecv(bytes.data(), narrow<int>(bytes.size()), MPI_BYTE, rank, tag, comm_, &request),
           "receive {} from rank {}", format_bytes(bytes.size()), rank);
  add(request, rank);
}

bool Requests::test() {
  int count = 0;
  AWEX_MPI(MPI_Testsome(narrow<int>(requests_.size()), requests_.data(), &count, done_.data(),
                        MPI_STATUSES_IGNORE),
           "make progress with {} messages", requests_.size());
  return count == MPI_UNDEFINED || std::all_of(requests_.begin(), requests_.end(),
                                               [](auto r) { return r == MPI_REQUEST_NULL; });
}

std::vector<int> Requests::missing() const {
  std::set<int> ranks;
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] != MPI_REQUEST_NULL) ranks.insert(ranks_[i]);
  }
  return {ranks.begin(), ranks.end()};
}

void Requests::add(MPI_Request request, int rank) {
  requests_.push_back(request);
  ranks_.push_back(rank);
  done_.push_back(0);
}

}  // namespace awex
