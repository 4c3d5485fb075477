#include "transfer/rounds.hpp"

#include <algorithm>
#include <map>

#include "base/checked.hpp"

namespace awex {
namespace {

/// The rows [row, row + rows) and bytes [byte, byte + row_bytes) of each row of a piece, as its
/// target holds them.
Piece part_of(const Piece& piece, uint64_t row, uint64_t rows, uint64_t byte, uint64_t row_bytes) {
  const uint64_t element = element_bytes(piece.to);
  const uint64_t skipped = byte / element;
  const uint64_t col = piece.box.cols.begin + skipped;
  Piece part = piece;
  part.box = {{piece.box.rows.begin + row, piece.box.rows.begin + row + rows},
              {col, col + row_bytes / element}};
  part.row_bytes = row_bytes;
  part.source_offset += row * piece.source_stride + skipped * element_bytes(piece.from);
  if (part.scales) part.scales = part.scales->moved(row, skipped);
  part.target_offset += row * piece.target_stride + byte;
  return part;
}

/// Splits a piece into parts of at most `most` packed bytes each: by whole rows, or within rows
/// that are longer than that.
std::vector<Piece> split(const Piece& piece, uint64_t most) {
  std::vector<Piece> parts;
  const uint64_t width = std::min(piece.row_bytes, most);
  const uint64_t rows_at_once = std::max<uint64_t>(1, most / piece.row_bytes);
  for (uint64_t row = 0; row < piece.box.rows.size(); row += rows_at_once) {
    const uint64_t rows = std::min(rows_at_once, piece.box.rows.size() - row);
    for (uint64_t byte = 0; byte < piece.row_bytes; byte += width) {
      parts.push_back(part_of(piece, row, rows, byte, std::min(width, piece.row_bytes - byte)));
    }
  }
  return parts;
}

/// The messages of one ordered pair of ranks, one a round.
class PairStream {
 public:
  PairStream(uint32_t peer, uint64_t slot_bytes) : peer_(peer), slot_bytes_(slot_bytes) {}

  void add(const Piece& piece) {
    for (const auto& part : split(piece, slot_bytes_)) {
      const uint64_t bytes = round_up(part.bytes(), kPackAlignment);
      if (messages_.empty() || messages_.back().bytes + bytes > slot_bytes_) {
        messages_.push_back({peer_, {}, 0});
      }
      auto& message = messages_.back();
      message.parts.push_back({part, message.bytes});
      message.bytes += bytes;
    }
  }

  [[nodiscard]] std::vector<PackedMessage>& messages() { return messages_; }

 private:
  uint32_t peer_;
  uint64_t slot_bytes_;
  std::vector<PackedMessage> messages_;
};

using Streams = std::map<uint32_t, PairStream>;

void place(Streams& streams, std::vector<PackedMessage> Round::*side, std::vector<Round>& rounds) {
  for (auto& [peer, stream] : streams) {
    auto& messages = stream.messages();
    if (rounds.size() < messages.size()) rounds.resize(messages.size());
    for (size_t i = 0; i < messages.size(); ++i) {
      (rounds[i].*side).push_back(std::move(messages[i]));
    }
  }
}

}  // namespace

std::vector<Round> make_rounds(const Plan& plan, const Placement& placement, uint32_t me,
                               uint64_t slot_bytes) {
  std::vector<uint32_t> inference_on(placement.device_node.size());
  for (uint32_t rank = 0; rank < placement.inference_device.size(); ++rank) {
    inference_on[placement.inference_device[rank]] = rank;
  }
  Streams sends;
  Streams receives;
  for (const auto& piece : plan.pieces) {
    const uint32_t sender = inference_on[placement.trainer_device[piece.source]];
    if (sender == piece.target) continue;
    if (sender == me)
      sends.try_emplace(piece.target, piece.target, slot_bytes).first->second.add(piece);
    if (piece.target == me)
      receives.try_emplace(sender, sender, slot_bytes).first->second.add(piece);
  }
  std::vector<Round> rounds;
  place(sends, &Round::sends, rounds);
  place(receives, &Round::receives, rounds);
  return rounds;
}

}  // namespace awex
