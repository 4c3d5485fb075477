#include "comm/collectives.hpp"

#include <cstring>
#include <utility>

#include "base/checked.hpp"
#include "base/units.hpp"
#include "comm/mpi_check.hpp"

namespace awex {

std::vector<std::byte> Collectives::all_gather(std::span<const std::byte> send,
                                               const std::string& what) {
  const int count = narrow<int>(send.size());
  agreement_.arrive(what);
  auto& from = abandoned_.emplace_back(send.begin(), send.end());
  auto& to = abandoned_.emplace_back(send.size() * static_cast<size_t>(world_.size()));
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(MPI_Iallgather(from.data(), count, MPI_BYTE, to.data(), count, MPI_BYTE, world_.comm(),
                          &request),
           "gather {} from every rank for '{}'", format_bytes(send.size()), what);
  agreement_.await_collective(request, what);
  auto result = std::move(to);
  abandoned_.clear();
  return result;
}

void Collectives::all_reduce(std::span<uint64_t> values, MPI_Op operation,
                             const std::string& what) {
  const int count = narrow<int>(values.size());
  agreement_.arrive(what);
  auto& results = abandoned_.emplace_back(values.size_bytes());
  std::memcpy(results.data(), values.data(), values.size_bytes());
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(MPI_Iallreduce(MPI_IN_PLACE, results.data(), count, MPI_UINT64_T, operation,
                          world_.comm(), &request),
           "reduce {} numbers for '{}'", count, what);
  agreement_.await_collective(request, what);
  std::memcpy(values.data(), results.data(), values.size_bytes());
  abandoned_.clear();
}

void Collectives::barrier(const std::string& what) {
  agreement_.arrive(what);
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(MPI_Ibarrier(world_.comm(), &request), "come to '{}'", what);
  agreement_.await_collective(request, what);
}

}  // namespace awex
