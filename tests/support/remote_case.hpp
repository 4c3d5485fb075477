#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "plan/exchanged_copies.hpp"
#include "support/naive_convert.hpp"
#include "transfer/move/remote_copies.hpp"

namespace awex::test {

/// Copies between all ranks of a job, of every kind that plans have, and what must become of them:
/// long rows, short rows at distances, places of every alignment, elements that change their dtype,
/// with scales or without; nothing between some pairs. Every rank makes the same case.
class RemoteCase {
 public:
  static constexpr size_t kCopiesOfPair = 19;

  /// The longest copy of each pair has a little more than `long_bytes`.
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

  /// What a rank sends from in a version: any bytes, but no NaN where elements change their dtype,
  /// and scales that are not 0.
  [[nodiscard]] std::vector<std::byte> source(uint32_t rank, uint64_t version) const {
    std::vector<std::byte> bytes(from_bytes_[rank]);
    uint64_t state = (rank + 1) * 0x9e3779b97f4a7c15U + version;
    for (uint64_t at = 0; at + sizeof(state) <= bytes.size(); at += sizeof(state)) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      std::memcpy(&bytes[at], &state, sizeof(state));
    }
    for (const auto& copy : copies_) {
      if (copy.source != rank) continue;
      if (copy.from != copy.to) make_finite(copy, bytes);
      if (copy.scales) write_scales(*copy.scales, version, bytes);
    }
    return bytes;
  }

  /// What a rank, all of whose bytes were `unset`, holds after a version.
  [[nodiscard]] std::vector<std::byte> target(uint32_t rank, uint64_t version,
                                              std::byte unset) const {
    std::vector<std::byte> bytes(to_bytes_[rank], unset);
    for (uint32_t sender = 0; sender < ranks_; ++sender) {
      const auto from = source(sender, version);
      for (const auto& copy : copies_) {
        if (copy.source != sender || copy.target != rank) continue;
        for (uint64_t row = 0; row < copy.rows; ++row) write_row(copy, row, from, bytes);
      }
    }
    return bytes;
  }

 private:
  static constexpr uint32_t kBlock = 16;
  static constexpr uint32_t kRowInBlock = 3;  ///< Of the first element of what has scales.
  static constexpr uint32_t kColInBlock = 5;
  static constexpr uint64_t kScaleStride = 24;
  static constexpr uint64_t kScaleRows = 56;

  /// Clears the highest bit of every element's exponent.
  static void make_finite(const MergedCopy& copy, std::vector<std::byte>& bytes) {
    const uint64_t size = element_bytes(copy.from);
    for (uint64_t row = 0; row < copy.rows; ++row) {
      std::byte* begin = &bytes[copy.source_offset + row * copy.source_stride];
      for (uint64_t at = size - 1; at < copy.source_row_bytes(); at += size) {
        begin[at] &= std::byte{0xbf};
      }
    }
  }

  static float scale_at(const ScalePlace& place, uint64_t row, uint64_t col,
                        const std::vector<std::byte>& bytes) {
    const uint64_t index = (place.row_in_block + row) / place.block * place.row_stride +
                           (place.col_in_block + col) / place.block;
    float scale = 0;
    std::memcpy(&scale, &bytes.at(place.offset_bytes + index * sizeof(float)), sizeof(float));
    return scale;
  }

  static void write_row(const MergedCopy& copy, uint64_t row, const std::vector<std::byte>& from,
                        std::vector<std::byte>& to) {
    const std::byte* source = &from[copy.source_offset + row * copy.source_stride];
    std::byte* target = &to[copy.target_byte(row, 0)];
    if (copy.from == copy.to) {
      std::memcpy(target, source, copy.row_bytes);
      return;
    }
    const uint64_t from_size = element_bytes(copy.from);
    const uint64_t to_size = element_bytes(copy.to);
    for (uint64_t col = 0; col < copy.row_bytes / to_size; ++col) {
      const float scale = copy.scales ? scale_at(*copy.scales, row, col, from) : 1;
      const uint32_t bits = naive_conversion(copy.from, copy.to,
                                             load_bits(source + col * from_size, from_size), scale);
      std::memcpy(target + col * to_size, &bits, to_size);
    }
  }

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
    // Of whole units and not, in several packets.
    for (const uint64_t cols : {344U, 341U}) {
      convert(sender, receiver, DType::kBf16, DType::kF32, 205, cols);
      convert(sender, receiver, DType::kF32, DType::kF16, 33, cols);
      convert(sender, receiver, DType::kBf16, DType::kF8E4M3, 801, cols);
    }
    convert(sender, receiver, DType::kF16, DType::kBf16, 1, 140'009);
    add(sender, receiver, {.rows = 1, .row_bytes = 1}, 1);
  }

  void convert(uint32_t sender, uint32_t receiver, DType from, DType to, uint64_t rows,
               uint64_t cols) {
    MergedCopy copy{.rows = rows, .row_bytes = cols * element_bytes(to), .from = from, .to = to};
    if (to == DType::kF8E4M3) {
      const uint64_t at = reserve(from_bytes_[sender], kScaleStride * kScaleRows * sizeof(float));
      copy.scales = ScalePlace{at, kScaleStride, kBlock, kRowInBlock, kColInBlock};
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

/// Memory of the device for a case: what is sent and received, and what both are filled and read
/// by, in order with the kernels.
template <class Memory>
struct RemoteCaseMemory {
  Memory from;
  Memory to;
  Memory next_from;
  Memory held;
};

/// Carries out a case in several versions, compares all that came, and finds spoilt bytes by
/// comparing. Memory is of the device, with data(), write(at, bytes) and fetch(). All inference
/// ranks together.
template <class Memory>
class RemoteCaseRun {
 public:
  RemoteCaseRun(RemoteCopies& copies, Kernels& kernels, const RemoteCase& one, uint32_t me,
                RemoteCaseMemory<Memory>& memory)
      : copies_(copies), kernels_(kernels), case_(one), me_(me), memory_(memory) {
    copies_.prepare(one.of(me), {memory.from.data(), one.from_bytes(me)},
                    {memory.to.data(), one.to_bytes(me)});
    copies_.connect();
    fill_ = copy_whole(memory.next_from, memory.from, one.from_bytes(me));
    read_ = copy_whole(memory.to, memory.held, one.to_bytes(me));
  }

  void check() {
    for (uint64_t version = 0; version < 3; ++version) {
      CAPTURE(version);
      check_version(version);
    }
    carry_out(&RemoteCopies::compare);
    copies_.wait();
    CHECK_FALSE(copies_.difference().has_value());
    for (size_t i = 0; i < RemoteCase::kCopiesOfPair; ++i) {
      CAPTURE(i);
      check_comparing(i, 0);
    }
    check_comparing(1, 1);
  }

 private:
  static constexpr std::byte kUnset{0xee};

  std::unique_ptr<CopyBatch> copy_whole(Memory& from, Memory& to, uint64_t bytes) {
    const StridedCopy copy{.from = from.data(),
                           .to = to.data(),
                           .rows = bytes == 0 ? 0U : 1U,
                           .row_bytes = bytes,
                           .from_stride = bytes,
                           .to_stride = bytes};
    return kernels_.prepare_copies({&copy, 1});
  }

  void carry_out(void (RemoteCopies::*work)()) {
    kernels_.fork();
    (copies_.*work)();
    kernels_.join();
  }

  /// What is sent is there only when the main stream's work before is done, and what came is read
  /// by its work behind.
  void check_version(uint64_t version) {
    expected_ = case_.target(me_, version, kUnset);
    memory_.next_from.write(0, case_.source(me_, version));
    memory_.to.write(0, std::vector<std::byte>(expected_.size(), kUnset));
    fill_->copy();
    carry_out(&RemoteCopies::copy);
    read_->copy();
    copies_.wait();
    auto held = memory_.held.fetch();
    held.resize(expected_.size());
    const auto wrong = std::mismatch(held.begin(), held.end(), expected_.begin()).first;
    CHECK(wrong - held.begin() == static_cast<std::ptrdiff_t>(expected_.size()));
  }

  /// Spoils the last byte of a copy of the last peer, or one so far behind it that it is nobody's.
  void check_comparing(size_t index, uint64_t behind) {
    const auto received = case_.of(me_).receives;
    std::optional<uint64_t> spoilt;
    if (!received.empty()) {
      const auto& copy = received.rbegin()->second.at(index);
      spoilt = copy.target_byte(copy.rows - 1, copy.row_bytes - 1) + behind;
      memory_.to.write(*spoilt, std::vector{~expected_[*spoilt]});
    }
    carry_out(&RemoteCopies::compare);
    copies_.wait();
    const auto found = copies_.difference();
    CHECK(found.has_value() == (behind == 0 && spoilt.has_value()));
    if (found) CHECK(found == spoilt);
    if (spoilt) memory_.to.write(*spoilt, std::vector{expected_[*spoilt]});
  }

  RemoteCopies& copies_;
  Kernels& kernels_;
  const RemoteCase& case_;
  uint32_t me_;
  RemoteCaseMemory<Memory>& memory_;
  std::unique_ptr<CopyBatch> fill_;
  std::unique_ptr<CopyBatch> read_;
  std::vector<std::byte> expected_;
};

}  // namespace awex::test
