#include "transfer/move/cuda_streams.hpp"

#include <span>

#include "base/checked.hpp"
#include "memory/cuda_check.hpp"
#include "transfer/kernels/cuda_describe.hpp"
#include "transfer/move/channel_streams.hpp"
#include "transfer/move/strided_copies.hpp"

namespace awex::cuda {
namespace {

/// Where a copy's bytes lie in its stream, as an address: what is known of its alignment.
std::byte* streamed(const StreamedCopy& copy) {
  return reinterpret_cast<std::byte*>(copy.begin);  // NOLINT(performance-no-int-to-ptr)
}

PackedPiece place(const StreamedCopy& copy, std::byte* data) {
  PackedPiece piece;
  piece.data = data;
  piece.begin = copy.begin;
  piece.end = copy.end();
  return piece;
}

void set_units(PackedPiece& piece, const UnitGrid& grid) {
  piece.row_units = narrow<uint32_t>(grid.row_units);
  piece.unit_bytes = narrow<uint32_t>((piece.end - piece.begin) / grid.units);
}

/// Elements that change their dtype: several at once where no row cuts them, else one by one.
PackedPiece converting_piece(const StreamedCopy& streamed_copy, const StridedCopy& copy,
                             std::byte* data) {
  const auto described = describe_converting_copies({&copy, 1}).front();
  auto piece = place(streamed_copy, data);
  piece.converts = true;
  piece.whole_units = described.from.whole_units;
  piece.conversion = described.from.conversion;
  piece.stride = described.from.row_stride;
  auto grid = described.grid;
  if (!described.from.whole_units) {
    grid.row_units = described.from.cols;
    grid.units = copy.bytes() / element_bytes(copy.conversion->to);
  }
  set_units(piece, grid);
  return piece;
}

/// What is sent of a trainer's region.
PackedPiece piece_to_send(const StreamedCopy& streamed_copy, const PlacedMemory& trainer) {
  const auto strided = packing_copy(streamed_copy.copy, trainer, streamed(streamed_copy));
  auto* data = const_cast<std::byte*>(strided.from);  // NOLINT(*-const-cast): it is only read
  if (strided.conversion) return converting_piece(streamed_copy, strided, data);
  const auto described = describe_copies({&strided, 1}).front();
  auto piece = place(streamed_copy, data);
  piece.stride = described.from_stride;
  set_units(piece, described.grid);
  return piece;
}

/// What is received into a rank's own region.
PackedPiece piece_to_receive(const StreamedCopy& streamed_copy, const PlacedMemory& own) {
  const auto strided = unpacking_copy(streamed_copy.copy, streamed(streamed_copy), own);
  const auto described = describe_copies({&strided, 1}).front();
  auto piece = place(streamed_copy, strided.to);
  piece.stride = described.to_stride;
  set_units(piece, described.grid);
  return piece;
}

template <class Describe>
std::vector<PackedPiece> describe_all(const std::vector<PackedStream>& streams,
                                      const Describe& describe) {
  const auto before = bytes_before_copies(streams);
  std::vector<PackedPiece> pieces;
  for (const auto& stream : streams) {
    for (const auto& copy : stream.copies) {
      const uint64_t first_byte = before[pieces.size()];
      pieces.push_back(describe(copy));
      pieces.back().first_byte = first_byte;
    }
  }
  return pieces;
}

}  // namespace

std::vector<PackedPiece> pieces_to_send(const std::vector<PackedStream>& streams,
                                        const PlacedMemory& trainer) {
  return describe_all(streams,
                      [&](const StreamedCopy& copy) { return piece_to_send(copy, trainer); });
}

std::vector<PackedPiece> pieces_to_receive(const std::vector<PackedStream>& streams,
                                           const PlacedMemory& own) {
  return describe_all(streams,
                      [&](const StreamedCopy& copy) { return piece_to_receive(copy, own); });
}

DeviceStreams::DeviceStreams(const std::vector<PackedStream>& streams,
                             const std::vector<PackedPiece>& pieces,
                             const std::vector<StreamLink>& links, cudaStream_t stream)
    : pieces_(std::span(pieces), stream),
      first_pieces_(std::span<const uint32_t>(all_first_copies(streams)), stream),
      streams_(streams.size()) {
  const auto ready = channel_streams(streams, links, pieces_.data(), first_pieces_.data());
  AWEX_CHECK(cudaMemcpyAsync(streams_.data(), ready.data(), streams_.bytes(),
                             cudaMemcpyHostToDevice, stream),
             "copy the descriptors of {} streams to the device", ready.size());
}

}  // namespace awex::cuda
