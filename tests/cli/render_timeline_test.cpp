#include "cli/render_timeline.hpp"

#include <doctest/doctest.h>

#include <sstream>
#include <string>
#include <vector>

#include "cli/sample_report.hpp"

namespace awex {
namespace {

using test::sample_phase;

/// The rows below the title: what is between the edges, by row.
struct Drawn {
  std::string label;
  std::string bars;
};

std::vector<Drawn> drawn(const std::vector<PhaseReport>& phases) {
  VersionReport version;
  version.version = 1;
  version.phases = phases;
  std::istringstream lines(render_timeline(version, false, 120));
  std::vector<Drawn> rows;
  std::string line;
  std::getline(lines, line);
  while (std::getline(lines, line)) {
    const auto edge = line.find('|');
    REQUIRE(edge != std::string::npos);
    REQUIRE(line.back() == '|');
    rows.push_back({line.substr(0, edge), line.substr(edge + 1, line.size() - edge - 2)});
  }
  return rows;
}

TEST_CASE("bars begin and end where their phases do") {
  const auto rows = drawn({sample_phase("offload", "trainer", "optimizer", 10.0, 3.0),
                           sample_phase("resume", "trainer", "optimizer", 14.0, 2.0)});
  REQUIRE(rows.size() == 1);
  // 6 s in 60 columns: 10 columns a second.
  CHECK(rows[0].bars ==
        "offload" + std::string(23, '=') + std::string(10, ' ') + "resume" + std::string(14, '='));
  CHECK(rows[0].bars.size() == kTimelineColumns);
}

TEST_CASE("every role and tag has its own row, the trainer's first") {
  const auto rows = drawn({sample_phase("resume", "inference", "weights", 0, 1),
                           sample_phase("commit", "all", "", 1, 1),
                           sample_phase("offload", "trainer", "weights", 0, 2),
                           sample_phase("offload", "trainer", "optimizer", 0, 2)});
  REQUIRE(rows.size() == 4);
  CHECK(rows[0].label == "trainer    weights    ");
  CHECK(rows[1].label == "trainer    optimizer  ");
  CHECK(rows[2].label == "inference  weights    ");
  CHECK(rows[3].label == "all                   ");
  for (const auto& row : rows) CHECK(row.bars.size() == kTimelineColumns);
}

TEST_CASE("a phase too short to see still has a column, and its neighbour keeps its own") {
  const auto rows = drawn({sample_phase("verify", "all", "", 0.0, 3.0),
                           sample_phase("commit", "all", "", 3.0, 0.0),
                           sample_phase("discard", "all", "", 3.0, 3.0)});
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].bars == "verify" + std::string(24, '=') + "c" + "discard" + std::string(22, '='));
}

TEST_CASE("phases of one lane that overlap are drawn below each other") {
  const auto rows = drawn({sample_phase("offload", "trainer", "weights", 0, 4),
                           sample_phase("verify", "trainer", "weights", 2, 4)});
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].label == rows[1].label);
  CHECK(rows[0].bars == "offload" + std::string(33, '=') + std::string(20, ' '));
  CHECK(rows[1].bars == std::string(20, ' ') + "verify" + std::string(34, '='));
}

TEST_CASE("the title tells the span and what a column is worth") {
  const auto text = render_timeline(test::sample_version(7), false, 120);
  CHECK(text.substr(0, text.find('\n')) == "timeline of version 7: 2.00 s, one column is 33.3 ms");
}

TEST_CASE("block characters only where they can be shown") {
  const auto version = test::sample_version(1);
  CHECK(render_timeline(version, true, 120).find("█") != std::string::npos);
  for (const char byte : render_timeline(version, false, 120)) {
    REQUIRE(static_cast<unsigned char>(byte) < 0x80);
  }
}

TEST_CASE("no phases, no timeline; no time, no division by it") {
  CHECK(render_timeline(VersionReport{}, true, 120).empty());
  const auto rows = drawn({sample_phase("commit", "all", "", 5.0, 0.0)});
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].bars == "c" + std::string(kTimelineColumns - 1, ' '));
}

TEST_CASE("a narrow timeline has fewer columns, and each is longer") {
  VersionReport version;
  version.version = 1;
  version.phases = {sample_phase("offload", "trainer", "optimizer", 0.0, 3.0),
                    sample_phase("resume", "trainer", "optimizer", 3.0, 3.0)};
  // Role, tag and edges take 22 columns.
  CHECK(render_timeline(version, false, 52) ==
        "timeline of version 1: 6.00 s, one column is 200 ms\n"
        "trainer  optimizer  |offload========resume=========|\n");
}

}  // namespace
}  // namespace awex
