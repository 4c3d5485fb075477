#include "comm/collectives.hpp"

#include <cstring>
#include <utility>

#include "base/checked.hpp"
#include "base/units.hpp"
#include "comm/mpi_check.hpp"

namespace awex {

using Kind = CollectiveCall::Kind;

std::vector<std::byte> Collectives::all_gather(std::span<const std::byte> send,
                                               const std::string& what) {
  agreement_.arrive(what);
  begin(Kind::kGather, send, send.size());
  waits_.wait_for_all([this] { return is_done(); }, what);
  return std::move(to_);
}

void Collectives::all_reduce(Kind kind, std::span<uint64_t> values, const std::string& what) {
  agreement_.arrive(what);
  begin(kind, std::as_bytes(values), values.size());
  waits_.wait_for_all([this] { return is_done(); }, what);
  std::memcpy(values.data(), to_.data(), values.size_bytes());
}

void Collectives::barrier(const std::string& what) {
  agreement_.arrive(what);
  begin(Kind::kBarrier, {}, 0);
  waits_.wait_for_all([this] { return is_done(); }, what);
}

void Collectives::begin(Kind kind, std::span<const std::byte> send, size_t count) {
  failures_.throw_known();  // the last call may be under way still, and use the memory
  const CollectiveCall call{begun_.sequence + 1, kind, narrow<int32_t>(count)};
  from_.assign(send.begin(), send.end());
  begun_ = call;
  start();
}

/// Begins the call `begun_` with what is in `from_`.
void Collectives::start() {
  const int count = begun_.count;
  const auto comm = world_.traffic().comm();
  switch (begun_.kind) {
    case Kind::kNone:
      return;
    case Kind::kGather:
      to_.resize(from_.size() * static_cast<size_t>(world_.size()));
      AWEX_MPI(MPI_Iallgather(from_.data(), count, MPI_BYTE, to_.data(), count, MPI_BYTE, comm,
                              &request_),
               "gather {} from every rank", format_bytes(from_.size()));
      return;
    case Kind::kSum:
    case Kind::kMax:
      to_.resize(from_.size());
      AWEX_MPI(MPI_Iallreduce(from_.data(), to_.data(), count, MPI_UINT64_T,
                              begun_.kind == Kind::kSum ? MPI_SUM : MPI_MAX, comm, &request_),
               "reduce {} numbers", count);
      return;
    case Kind::kBarrier:
      AWEX_MPI(MPI_Ibarrier(comm, &request_), "come to a barrier");
      return;
  }
}

bool Collectives::is_done() {
  int done = 0;
  AWEX_MPI(MPI_Test(&request_, &done, MPI_STATUS_IGNORE), "complete a collective call");
  return done != 0;
}

void Collectives::join(const CollectiveCall& last) {
  if (last == begun_) return;
  if (last.sequence != begun_.sequence + 1) {
    throw runtime_error(fmt::format("another rank has come to collective call {} (kind {}, {} "
                                    "values), this one to {} (kind {}, {} values)",
                                    last.sequence, static_cast<int>(last.kind), last.count,
                                    begun_.sequence, static_cast<int>(begun_.kind), begun_.count),
                        "this is a fault of awex-colocate: please report it");
  }
  const bool is_bytes = last.kind == Kind::kGather;
  from_.assign(static_cast<size_t>(last.count) * (is_bytes ? 1 : sizeof(uint64_t)), std::byte{0});
  begun_ = last;
  start();
}

bool Collectives::settle() { return is_done(); }

}  // namespace awex
