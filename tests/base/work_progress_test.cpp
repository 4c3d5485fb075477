#include "base/work_progress.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/thread_pool.hpp"

using namespace awex;

namespace {

constexpr uint64_t kPieces = 64;
constexpr uint64_t kPieceBytes = 1000;

/// Keeps what it is told.
class Listener final : public WaitMonitor {
 public:
  void poll() override {}
  void progressed(const WorkProgress& progress) override { heard.push_back(progress); }

  std::vector<WorkProgress> heard;
};

/// Work that threads share out.
void read_pieces() {
  ThreadPool pool(4);
  pool.for_each(kPieces, [](size_t piece) {
    const work::FileRead open("file " + std::to_string(piece), kPieceBytes);
    for (uint64_t i = 0; i < kPieceBytes; ++i) work::advance(1);
  });
}

}  // namespace

TEST_CASE("what threads of long work count is told, never less than before, and all at its end") {
  Listener listener;
  const work::Task task{"reading", 500, 500 + kPieces * kPieceBytes};
  work::attend(read_pieces, task, Seconds(60), listener);
  REQUIRE(listener.heard.size() >= 2);
  CHECK(listener.heard.front().done_bytes == 500);
  CHECK(listener.heard.back().done_bytes == task.all_bytes);
  CHECK(listener.heard.back().ended);
  uint64_t done = 0;
  for (const auto& progress : listener.heard) {
    CHECK(progress.done_bytes >= done);
    CHECK(progress.all_bytes == task.all_bytes);
    done = progress.done_bytes;
  }
}

TEST_CASE("what long work throws comes to the one who waits for it") {
  NoMonitor nobody;
  const auto fail = [] { throw runtime_error("the work failed"); };
  CHECK_THROWS_WITH_AS(work::attend(fail, {"reading"}, Seconds(60), nobody), "the work failed",
                       Error);
}
