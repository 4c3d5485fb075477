#include "cli/render_timeline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/units.hpp"

namespace awex {
namespace {

struct Span {
  double begin = 0;
  double end = 0;

  [[nodiscard]] size_t column_of(double time) const {
    if (end <= begin) return 0;
    const double column = (time - begin) / (end - begin) * double{kTimelineColumns};
    return static_cast<size_t>(std::lround(std::clamp(column, 0.0, double{kTimelineColumns})));
  }
};

/// A row of bars that do not overlap, drawn from left to right.
struct Row {
  std::string text;
  size_t columns = 0;  ///< Drawn so far; `text` may have more bytes.
  double end = 0;      ///< When its last bar ends.
};

struct Lane {
  std::string role;
  std::string tag;
  std::vector<Row> rows;
};

Span span_of(const std::vector<PhaseReport>& phases) {
  Span span{phases.front().start_s, phases.front().start_s};
  for (const auto& phase : phases) {
    span.begin = std::min(span.begin, phase.start_s);
    span.end = std::max(span.end, phase.start_s + phase.seconds);
  }
  return span;
}

void draw_bar(Row& row, const PhaseReport& phase, const Span& span, bool unicode) {
  // A bar that rounding would put onto its neighbour moves right instead: it must not vanish.
  const size_t begin = std::max(span.column_of(phase.start_s), row.columns);
  const size_t end = std::max(span.column_of(phase.start_s + phase.seconds), begin + 1);
  const size_t named = std::min(phase.phase.size(), end - begin);
  row.text += std::string(begin - row.columns, ' ') + phase.phase.substr(0, named);
  for (size_t i = begin + named; i < end; ++i) row.text += unicode ? "█" : "=";
  row.columns = end;
  row.end = phase.start_s + phase.seconds;
}

Row& free_row(Lane& lane, double start) {
  // Phases that follow each other share a row although their clocks may differ by a microsecond.
  constexpr double kSlackSeconds = 1e-6;
  for (auto& row : lane.rows) {
    if (row.end <= start + kSlackSeconds) return row;
  }
  return lane.rows.emplace_back();
}

Lane& lane_of(std::vector<Lane>& lanes, const PhaseReport& phase) {
  for (auto& lane : lanes) {
    if (lane.role == phase.role && lane.tag == phase.tag) return lane;
  }
  return lanes.emplace_back(Lane{phase.role, phase.tag, {}});
}

std::vector<Lane> draw_lanes(std::vector<PhaseReport> phases, const Span& span, bool unicode) {
  std::stable_sort(phases.begin(), phases.end(),
                   [](const auto& a, const auto& b) { return a.start_s < b.start_s; });
  std::vector<Lane> lanes;
  for (const auto& phase : phases) {
    draw_bar(free_row(lane_of(lanes, phase), phase.start_s), phase, span, unicode);
  }
  std::stable_sort(lanes.begin(), lanes.end(),
                   [](const Lane& a, const Lane& b) { return a.role > b.role; });
  return lanes;
}

}  // namespace

std::string render_timeline(const VersionReport& version, bool unicode) {
  if (version.phases.empty()) return {};
  const Span span = span_of(version.phases);
  const double seconds = span.end - span.begin;
  const auto lanes = draw_lanes(version.phases, span, unicode);
  size_t role_width = 0;
  size_t tag_width = 0;
  for (const auto& lane : lanes) {
    role_width = std::max(role_width, lane.role.size());
    tag_width = std::max(tag_width, lane.tag.size());
  }
  const char* edge = unicode ? "│" : "|";
  std::string out =
      fmt::format("timeline of version {}: {}, one column is {}\n", version.version,
                  format_seconds(seconds), format_seconds(seconds / double{kTimelineColumns}));
  for (const auto& lane : lanes) {
    for (const auto& row : lane.rows) {
      const std::string blanks(kTimelineColumns - std::min(row.columns, kTimelineColumns), ' ');
      out += fmt::format("{:<{}}  {:<{}}  {}{}{}{}\n", lane.role, role_width, lane.tag, tag_width,
                         edge, row.text, blanks, edge);
    }
  }
  return out;
}

}  // namespace awex
