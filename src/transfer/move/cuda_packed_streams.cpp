#include "transfer/move/cuda_packed_streams.hpp"

#include <span>

#include "base/checked.hpp"
#include "memory/cuda_check.hpp"
#include "transfer/kernels/cuda_describe.hpp"
#include "transfer/move/channel_packed_streams.hpp"
#include "transfer/move/strided_copies.hpp"

namespace awex::cuda {
namespace {

/// Where a copy's bytes lie in its stream, as an address: what is known of its alignment.
std::byte* in_stream(const PackedCopy& copy) {
  return reinterpret_cast<std::byte*>(copy.begin);  // NOLINT(performance-no-int-to-ptr)
}

PackedCopyDescriptor place(const PackedCopy& copy, std::byte* data) {
  PackedCopyDescriptor descriptor;
  descriptor.data = data;
  descriptor.begin = copy.begin;
  descriptor.end = copy.end();
  return descriptor;
}

void set_units(PackedCopyDescriptor& descriptor, const UnitGrid& grid) {
  descriptor.row_units = narrow<uint32_t>(grid.row_units);
  descriptor.unit_bytes = narrow<uint32_t>((descriptor.end - descriptor.begin) / grid.units);
}

/// Elements that change their dtype: several at once where no row cuts them, else one by one.
PackedCopyDescriptor describe_converting(const PackedCopy& packed_copy, const StridedCopy& copy,
                                         std::byte* data) {
  const auto described = describe_converting_copies({&copy, 1}).front();
  auto descriptor = place(packed_copy, data);
  descriptor.converts = true;
  descriptor.whole_units = described.from.whole_units;
  descriptor.conversion = described.from.conversion;
  descriptor.stride = described.from.row_stride;
  auto grid = described.grid;
  if (!described.from.whole_units) {
    grid.row_units = described.from.cols;
    grid.units = copy.bytes() / element_bytes(copy.conversion->to);
  }
  set_units(descriptor, grid);
  return descriptor;
}

/// What is sent of a trainer's region.
PackedCopyDescriptor describe_to_send(const PackedCopy& packed_copy, const PlacedMemory& trainer) {
  const auto strided = packing_copy(packed_copy.copy, trainer, in_stream(packed_copy));
  auto* data = const_cast<std::byte*>(strided.from);  // NOLINT(*-const-cast): it is only read
  if (strided.conversion) return describe_converting(packed_copy, strided, data);
  const auto described = describe_copies({&strided, 1}).front();
  auto descriptor = place(packed_copy, data);
  descriptor.stride = described.from_stride;
  set_units(descriptor, described.grid);
  return descriptor;
}

/// What is received into a rank's own region.
PackedCopyDescriptor describe_to_receive(const PackedCopy& packed_copy, const PlacedMemory& own) {
  const auto strided = unpacking_copy(packed_copy.copy, in_stream(packed_copy), own);
  const auto described = describe_copies({&strided, 1}).front();
  auto descriptor = place(packed_copy, strided.to);
  descriptor.stride = described.to_stride;
  set_units(descriptor, described.grid);
  return descriptor;
}

template <class Describe>
std::vector<PackedCopyDescriptor> describe_all(const std::vector<PackedStream>& streams,
                                               const Describe& describe) {
  const auto before = bytes_before_copies(streams);
  std::vector<PackedCopyDescriptor> descriptors;
  for (const auto& stream : streams) {
    for (const auto& copy : stream.copies) {
      const uint64_t first_byte = before[descriptors.size()];
      descriptors.push_back(describe(copy));
      descriptors.back().first_byte = first_byte;
    }
  }
  return descriptors;
}

}  // namespace

std::vector<PackedCopyDescriptor> descriptors_to_send(const std::vector<PackedStream>& streams,
                                                      const PlacedMemory& trainer) {
  return describe_all(streams,
                      [&](const PackedCopy& copy) { return describe_to_send(copy, trainer); });
}

std::vector<PackedCopyDescriptor> descriptors_to_receive(const std::vector<PackedStream>& streams,
                                                         const PlacedMemory& own) {
  return describe_all(streams,
                      [&](const PackedCopy& copy) { return describe_to_receive(copy, own); });
}

DevicePackedStreams::DevicePackedStreams(const std::vector<PackedStream>& streams,
                                         const std::vector<PackedCopyDescriptor>& descriptors,
                                         const std::vector<PackedStreamLink>& links,
                                         cudaStream_t stream)
    : descriptors_(std::span(descriptors), stream),
      first_descriptors_(std::span<const uint32_t>(all_first_copies(streams)), stream),
      streams_(streams.size()) {
  const auto ready =
      channel_packed_streams(streams, links, descriptors_.data(), first_descriptors_.data());
  AWEX_CHECK(cudaMemcpyAsync(streams_.data(), ready.data(), streams_.bytes(),
                             cudaMemcpyHostToDevice, stream),
             "copy the descriptors of {} packed streams to the device", ready.size());
}

}  // namespace awex::cuda
