#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "transfer/copy_conversion.hpp"
#include "transfer/exchanged_copies.hpp"
#include "transfer/host_kernels.hpp"
#include "transfer/remote_copies.hpp"

namespace awex::test {

/// Copies between all ranks of a job, of every kind that plans have, and what must become of them:
/// long rows, short rows at distances, places of every alignment, elements that change their dtype,
/// with scales or without; nothing between some pairs. Every rank makes the same case.
class RemoteCase {
 public:
  /// Of the longest copy of each pair; its last row is cut by the bounds of packets and messages.
  RemoteCase(uint32_t ranks, uint64_t long_bytes)
      : ranks_(ranks), long_bytes_(long_bytes), from_bytes_(ranks), to_bytes_(ranks) {
    for (uint32_t sender = 0; sender < ranks; ++sender) {
      for (uint32_t receiver = 0; receiver < ranks; ++receiver) {
        if (sender != receiver && (sender * 7 + receiver) % 5 != 4) add_pair(sender, receiver);
      }
    }
  }

  [[nodiscard]] uint64_t from_bytes(uint32_t rank) const { return from_bytes_[rank]; }
  [[nodiscard]] uint64_t to_bytes(uint32_t rank) const { return to_bytes_[rank]; }

  [[nodiscard]] ExchangedCopies of(uint32_t me) const {
    ExchangedCopies copies{me, ranks_, {}, {}};
    for (const auto& copy : copies_) {
      if (copy.source == me) copies.sends[copy.target].push_back(copy);
      if (copy.target == me) copies.receives[copy.source].push_back(copy);
    }
    return copies;
  }

  /// What a rank sends from in a version: any bytes, and scales that are not 0.
  [[nodiscard]] std::vector<std::byte> source(uint32_t rank, uint64_t version) const {
    std::vector<std::byte> bytes(from_bytes_[rank]);
    uint64_t state = (rank + 1) * 0x9e3779b97f4a7c15U + version;
    for (uint64_t at = 0; at + sizeof(state) <= bytes.size(); at += sizeof(state)) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      std::memcpy(&bytes[at], &state, sizeof(state));
    }
    for (const auto& copy : copies_) {
      if (copy.source == rank && copy.scales) write_scales(*copy.scales, version, bytes);
    }
    return bytes;
  }

  /// What a rank, all of whose bytes were `unset`, holds after a version.
  [[nodiscard]] std::vector<std::byte> target(uint32_t rank, uint64_t version,
                                              std::byte unset) const {
    std::vector<std::byte> bytes(to_bytes_[rank], unset);
    const auto device = make_host_device(0, 1);
    const auto kernels = make_host_kernels(*device, 1);
    for (uint32_t sender = 0; sender < ranks_; ++sender) {
      const auto from = source(sender, version);
      std::vector<StridedCopy> copies;
      for (const auto& copy : copies_) {
        if (copy.source != sender || copy.target != rank) continue;
        copies.push_back({from.data() + copy.source_offset, bytes.data() + copy.target_offset,
                          copy.rows, copy.row_bytes, copy.source_stride, copy.target_stride,
                          conversion_of(copy, from.data())});
      }
      kernels->prepare_copies(copies)->copy();
    }
    return bytes;
  }

 private:
  static constexpr uint32_t kBlock = 16;
  static constexpr uint64_t kScaleStride = 8;
  static constexpr uint64_t kScaleRows = 6;

  static void write_scales(const ScalePlace& place, uint64_t version,
                           std::vector<std::byte>& bytes) {
    for (uint64_t i = 0; i < kScaleStride * kScaleRows; ++i) {
      const float scale = 0.25F * static_cast<float>(1 + (i + version) % 37);
      std::memcpy(&bytes[place.offset_bytes + i * sizeof(float)], &scale, sizeof(float));
    }
  }

  void add_pair(uint32_t sender, uint32_t receiver) {
    add(sender, receiver, {.rows = 1, .row_bytes = long_bytes_ + 48}, 16);
    for (const uint64_t width : {16U, 8U, 4U, 2U, 1U}) {
      add(sender, receiver, {.rows = 301, .row_bytes = 37 * width}, width);
      add(sender, receiver, {.rows = 3, .row_bytes = 9001 * width}, width);
    }
    for (const uint64_t cols : {64U, 13U}) {
      convert(sender, receiver, DType::kBf16, DType::kF32, 333, cols);
      convert(sender, receiver, DType::kF32, DType::kF16, 33, cols);
      convert(sender, receiver, DType::kBf16, DType::kF8E4M3, 70, cols);
    }
    convert(sender, receiver, DType::kF16, DType::kBf16, 1, 200'009);
    add(sender, receiver, {.rows = 1, .row_bytes = 1}, 1);
  }

  void convert(uint32_t sender, uint32_t receiver, DType from, DType to, uint64_t rows,
               uint64_t cols) {
    MergedCopy copy{.rows = rows, .row_bytes = cols * element_bytes(to), .from = from, .to = to};
    if (to == DType::kF8E4M3) {
      const uint64_t at = reserve(from_bytes_[sender], kScaleStride * kScaleRows * sizeof(float));
      copy.scales = ScalePlace{at, kScaleStride, kBlock, 3, 5};
    }
    constexpr uint64_t kWideGap = 32;
    add(sender, receiver, copy, cols % 8 == 0 ? kWideGap : element_bytes(to));
  }

  /// Sets the places of a copy, whose rows are `gap` bytes apart at the target.
  void add(uint32_t sender, uint32_t receiver, MergedCopy copy, uint64_t gap) {
    const uint64_t shift = gap < 16 ? gap : 0;
    copy.source = sender;
    copy.target = receiver;
    copy.source_stride =
        copy.source_row_bytes() + 3 * gap / element_bytes(copy.to) * element_bytes(copy.from);
    copy.target_stride = copy.row_bytes + gap;
    const uint64_t source_shift = shift / element_bytes(copy.to) * element_bytes(copy.from);
    copy.source_offset =
        reserve(from_bytes_[sender], source_shift + copy.rows * copy.source_stride) + source_shift;
    copy.target_offset =
        reserve(to_bytes_[receiver], shift + copy.rows * copy.target_stride) + shift;
    copies_.push_back(copy);
  }

  /// The begin of so many more bytes.
  static uint64_t reserve(uint64_t& end, uint64_t bytes) {
    constexpr uint64_t kAlignment = 32;
    const uint64_t begin = end;
    end += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  }

  uint32_t ranks_;
  uint64_t long_bytes_;
  std::vector<uint64_t> from_bytes_;  ///< By rank.
  std::vector<uint64_t> to_bytes_;
  std::vector<MergedCopy> copies_;
};

/// Carries out a case in several versions, compares all that came, and finds one spoilt byte by
/// comparing. Memory(bytes) is memory of the device with data(), write(at, bytes) and fetch(). All
/// inference ranks together.
template <class Memory>
void check_remote_copies(RemoteCopies& copies, Kernels& kernels, const RemoteCase& one, uint32_t me,
                         Memory& from, Memory& to) {
  constexpr std::byte kUnset{0xee};
  constexpr uint64_t kVersions = 3;
  const auto run = [&](void (RemoteCopies::*work)()) {
    kernels.fork();
    (copies.*work)();
    kernels.join();
    copies.wait();
  };
  copies.prepare(one.of(me), from.data(), to.data());
  copies.connect();
  std::vector<std::byte> expected;
  for (uint64_t version = 0; version < kVersions; ++version) {
    CAPTURE(version);
    expected = one.target(me, version, kUnset);
    from.write(0, one.source(me, version));
    to.write(0, std::vector<std::byte>(expected.size(), kUnset));
    run(&RemoteCopies::copy);
    auto held = to.fetch();
    held.resize(expected.size());
    const auto wrong = std::mismatch(held.begin(), held.end(), expected.begin()).first;
    CHECK(wrong - held.begin() == static_cast<std::ptrdiff_t>(expected.size()));
  }
  run(&RemoteCopies::compare);
  CHECK_FALSE(copies.difference().has_value());
  // The last byte is of the last copy, wherever that came from.
  for (const uint64_t gap : {uint64_t{0}, uint64_t{1}}) {
    const auto received = one.of(me).receives;
    const auto spoil = [&](const MergedCopy& copy) {
      const uint64_t at = copy.target_byte(copy.rows - 1, copy.row_bytes - 1) + gap;
      to.write(at, std::vector{~expected[at]});
      return at;
    };
    std::vector<uint64_t> spoilt;
    if (!received.empty()) spoilt.push_back(spoil(received.rbegin()->second[5]));
    run(&RemoteCopies::compare);
    // A byte behind a row is nobody's.
    CHECK(copies.difference().has_value() == (gap == 0 && !spoilt.empty()));
    if (copies.difference()) CHECK(*copies.difference() == spoilt.front());
    for (const uint64_t at : spoilt) to.write(at, std::vector{expected[at]});
  }
}

}  // namespace awex::test
