#pragma once

#include <cstdint>
#include <vector>

#include "plan/exchanged_copies.hpp"

namespace awex {

/// A copy of 1 GiB at most, or a part of one, and where its first byte lies in its packed stream;
/// its rows follow one another.
struct PackedCopy {
  MergedCopy copy;
  uint64_t begin = 0;

  [[nodiscard]] uint64_t end() const { return begin + copy.bytes(); }
};

/// All that goes from one rank to another.
struct PackedStream {
  uint32_t peer = 0;  ///< The other end's inference role rank.
  std::vector<PackedCopy> copies;

  [[nodiscard]] uint64_t bytes() const { return copies.empty() ? 0 : copies.back().end(); }
};

/// One packed stream for every other rank, also where nothing goes: rank r sends stream d to rank
/// r + d + 1 and receives stream d from rank r - d - 1 (mod ranks). So both ends of a stream give
/// it the same number, and channels agree on its packets. A channel goes through streams in this
/// order on all ranks, which therefore never wait for each other in a circle.
[[nodiscard]] std::vector<PackedStream> streams_to_send(const ExchangedCopies& copies);
[[nodiscard]] std::vector<PackedStream> streams_to_receive(const ExchangedCopies& copies);

/// By packet: the first copy of the stream that has bytes in it.
[[nodiscard]] std::vector<uint32_t> first_copies(const PackedStream& stream);

}  // namespace awex
