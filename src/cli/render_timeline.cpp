#include "cli/render_timeline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/units.hpp"
#include "cli/wrapped_text.hpp"

namespace awex {
namespace {

/// Longer names of tags are folded.
constexpr size_t kWidestTag = 16;
/// Bars are not drawn in less.
constexpr size_t kFewestColumns = 8;

struct Span {
  double begin = 0;
  double end = 0;
  size_t columns = kTimelineColumns;

  [[nodiscard]] size_t column_of(double time) const {
    if (end <= begin) return 0;
    const auto all = static_cast<double>(columns);
    const double column = (time - begin) / (end - begin) * all;
    return static_cast<size_t>(std::lround(std::clamp(column, 0.0, all)));
  }
};

/// A row of bars that do not overlap, drawn from left to right.
struct Row {
  std::string text;
  size_t columns = 0;  ///< Drawn so far; `text` may have more bytes.
  double end = 0;      ///< When its last bar ends.
};

/// The phases of one role and tag.
struct Track {
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

Row& free_row(Track& track, double start) {
  // Phases that follow each other share a row although their clocks may differ by a microsecond.
  constexpr double kSlackSeconds = 1e-6;
  for (auto& row : track.rows) {
    if (row.end <= start + kSlackSeconds) return row;
  }
  return track.rows.emplace_back();
}

Track& track_of(std::vector<Track>& tracks, const PhaseReport& phase) {
  for (auto& track : tracks) {
    if (track.role == phase.role && track.tag == phase.tag) return track;
  }
  return tracks.emplace_back(Track{phase.role, phase.tag, {}});
}

std::vector<Track> draw_tracks(std::vector<PhaseReport> phases, const Span& span, bool unicode) {
  std::stable_sort(phases.begin(), phases.end(),
                   [](const auto& a, const auto& b) { return a.start_s < b.start_s; });
  std::vector<Track> tracks;
  for (const auto& phase : phases) {
    draw_bar(free_row(track_of(tracks, phase), phase.start_s), phase, span, unicode);
  }
  std::stable_sort(tracks.begin(), tracks.end(),
                   [](const Track& a, const Track& b) { return a.role > b.role; });
  return tracks;
}

}  // namespace

std::string render_timeline(const VersionReport& version, bool unicode, size_t width) {
  if (version.phases.empty()) return {};
  Span span = span_of(version.phases);
  const double seconds = span.end - span.begin;
  size_t role_width = 0;
  size_t tag_width = 0;
  for (const auto& phase : version.phases) {
    role_width = std::max(role_width, phase.role.size());
    tag_width = std::max(tag_width, phase.tag.size());
  }
  tag_width = std::min(tag_width, kWidestTag);
  const size_t beside = role_width + 2 + tag_width + 2 + 2;  // gaps and edges
  span.columns = std::clamp(width - std::min(width, beside), kFewestColumns, kTimelineColumns);
  const auto tracks = draw_tracks(version.phases, span, unicode);
  const char* edge = unicode ? "│" : "|";
  std::string out = fmt::format("timeline of version {}: {}, one column is {}\n", version.version,
                                format_seconds(seconds),
                                format_seconds(seconds / static_cast<double>(span.columns)));
  for (const auto& track : tracks) {
    for (const auto& row : track.rows) {
      const std::string blanks(span.columns - std::min(row.columns, span.columns), ' ');
      const auto tag_lines = folded(track.tag, tag_width);
      out += fmt::format("{:<{}}  {:<{}}  {}{}{}{}\n", track.role, role_width, tag_lines.front(),
                         tag_width, edge, row.text, blanks, edge);
      for (size_t i = 1; i < tag_lines.size(); ++i) {
        out += fmt::format("{:<{}}  {}\n", "", role_width, tag_lines[i]);
      }
    }
  }
  return out;
}

}  // namespace awex
