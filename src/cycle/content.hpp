#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace awex {

/// What inference's weights are, beside the state of the memory that holds them.
enum class ContentState : uint8_t {
  kEmpty,      ///< No weights: none have come yet, or their memory was given back.
  kPoisoned,   ///< Bytes of several versions may be mixed.
  kCommitted,  ///< Those of a version that every rank has agreed on.
};

/// "empty", "poisoned" or "committed".
[[nodiscard]] const char* content_name(ContentState state);

struct ContentMove {
  ContentState from;
  ContentState to;
};

/// Every legal move. What is poisoned stays so until a commit, also when its memory is given back:
/// the update that failed is still to be repeated.
inline constexpr ContentMove kContentMoves[] = {
    {ContentState::kEmpty, ContentState::kEmpty},
    {ContentState::kEmpty, ContentState::kPoisoned},
    {ContentState::kPoisoned, ContentState::kPoisoned},
    {ContentState::kPoisoned, ContentState::kCommitted},
    {ContentState::kCommitted, ContentState::kPoisoned},
    {ContentState::kCommitted, ContentState::kEmpty},
};

[[nodiscard]] constexpr bool is_legal_move(ContentState from, ContentState to) {
  for (const auto& move : kContentMoves) {
    if (move.from == from && move.to == to) return true;
  }
  return false;
}

/// The content of all inference ranks' weights together; the same on every rank, as every rank
/// makes the same moves. A move that is not legal is a run-time error that names both states.
class Content {
 public:
  [[nodiscard]] ContentState state() const { return state_; }
  /// The version that was committed last, also when its weights are there no more.
  [[nodiscard]] std::optional<uint64_t> committed() const { return committed_; }

  /// Before the first byte of a transfer may be written.
  void poison();
  /// Of the transfer that failed last no rank has written a byte: what was there before it is
  /// there. Nothing where no transfer has failed since the last commit.
  void roll_back();
  /// When every rank has agreed that `version` is right.
  void commit(uint64_t version);
  /// The weights' memory is given back. What is poisoned stays so.
  void discard();
  /// After a failure, between whose moves ranks may have stopped: `ranks` is what all of them have.
  /// Where they differ in more than that some have given the memory back, the content is poisoned.
  void reconcile(std::span<const Content> ranks);

  /// What is there now; not how it came there.
  friend bool operator==(const Content& a, const Content& b) {
    return a.state_ == b.state_ && a.committed_ == b.committed_;
  }

 private:
  void enter(ContentState to);

  ContentState state_ = ContentState::kEmpty;
  ContentState before_ = ContentState::kEmpty;  ///< The transfer that has poisoned it.
  std::optional<uint64_t> committed_;
};

}  // namespace awex
