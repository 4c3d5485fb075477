#include "cycle/content.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace awex {

const char* content_name(ContentState state) {
  switch (state) {
    case ContentState::kEmpty:
      return "empty";
    case ContentState::kPoisoned:
      return "poisoned";
    case ContentState::kCommitted:
      return "committed";
  }
  return "unknown";
}

void Content::poison() {
  before_ = state_;
  enter(ContentState::kPoisoned);
}

void Content::roll_back() {
  if (state_ == ContentState::kPoisoned) state_ = before_;
}

void Content::commit(uint64_t version) {
  enter(ContentState::kCommitted);
  committed_ = version;
}

void Content::discard() {
  if (state_ != ContentState::kPoisoned) enter(ContentState::kEmpty);
}

void Content::reconcile(std::span<const Content> ranks) {
  bool is_mixed = false;
  bool is_empty = false;
  auto committed = committed_;
  for (const auto& rank : ranks) {
    is_mixed = is_mixed || rank.state_ == ContentState::kPoisoned || rank.committed_ != committed_;
    is_empty = is_empty || rank.state_ == ContentState::kEmpty;
    committed = std::min(committed, rank.committed_);
  }
  committed_ = committed;
  if (is_mixed) {
    enter(ContentState::kPoisoned);
    before_ = ContentState::kPoisoned;
  } else if (is_empty) {
    discard();
  }
}

void Content::enter(ContentState to) {
  if (!is_legal_move(state_, to)) {
    throw runtime_error(fmt::format("cannot move the content of inference's weights from {} to {}",
                                    content_name(state_), content_name(to)),
                        "transfer weights before committing them");
  }
  state_ = to;
}

}  // namespace awex
