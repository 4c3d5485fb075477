#include "transfer/kernels/launch_order.hpp"

#include <algorithm>
#include <limits>

#include "base/checked.hpp"

namespace awex::cuda {
namespace {

constexpr uint64_t kStepUnits = uint64_t{kStepTiles} * kTileUnits;

/// Half-open; addresses.
struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;
};

/// From the first to the last byte of units [first, end) of an item, at least one.
Range range_of_units(const TouchedRows& rows, uint64_t first, uint64_t end) {
  const uint64_t last = end - 1;
  const uint64_t first_row = first / rows.grid.row_units;
  const uint64_t last_row = last / rows.grid.row_units;
  const uint64_t first_byte = first % rows.grid.row_units * rows.unit_bytes;
  const uint64_t end_byte = (last % rows.grid.row_units + 1) * rows.unit_bytes;
  return {rows.begin + first_row * rows.stride + first_byte -
              std::min<uint64_t>(first_byte, rows.early_bytes),
          rows.begin + last_row * rows.stride + std::min(end_byte, rows.row_bytes)};
}

Range range_of_step(const TouchedRows& rows, uint64_t first_tile) {
  const uint64_t first = first_tile * kTileUnits;
  return range_of_units(rows, first, std::min(first + kStepUnits, rows.grid.units));
}

uint64_t steps_of(const UnitGrid& grid) { return ceil_div(grid.units, kStepUnits); }

uint32_t tiles_of_step(const UnitGrid& grid, uint32_t first_tile) {
  return static_cast<uint32_t>(
      std::min<uint64_t>(kStepTiles, ceil_div(grid.units, kTileUnits) - first_tile));
}

struct CopyStep {
  uint64_t begin = 0;  ///< Address where what it writes begins.
  uint64_t reach = 0;  ///< The highest end of what it and the steps before it write.
  uint32_t item = 0;
  uint32_t first_tile = 0;
};

/// The copies' steps by target address.
std::vector<CopyStep> sorted_copies(std::span<const TouchedByCopy> copies) {
  std::vector<CopyStep> steps;
  for (uint32_t item = 0; item < copies.size(); ++item) {
    const uint64_t count = steps_of(copies[item].to.grid);
    for (uint32_t tile = 0; tile < count * kStepTiles; tile += kStepTiles) {
      const auto range = range_of_step(copies[item].to, tile);
      steps.push_back({range.begin, range.end, item, tile});
    }
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const CopyStep& a, const CopyStep& b) { return a.begin < b.begin; });
  uint64_t reach = 0;
  for (auto& step : steps) step.reach = reach = std::max(reach, step.reach);
  return steps;
}

/// Finds the step of copies that reads a place in memory.
class ReadPlaces {
 public:
  ReadPlaces(std::span<const TouchedByCopy> copies, const std::vector<CopyStep>& steps) {
    places_.reserve(steps.size());
    for (const auto& step : steps) {
      const auto range = range_of_step(copies[step.item].from, step.first_tile);
      places_.push_back({range.begin, static_cast<uint32_t>(places_.size())});
    }
    std::sort(places_.begin(), places_.end(),
              [](const Place& a, const Place& b) { return a.begin < b.begin; });
  }

  /// The place of the step whose source is the last to begin at or before `address`; of the step
  /// whose source is the first of all where none does.
  [[nodiscard]] uint32_t at(uint64_t address) const {
    if (places_.empty()) return 0;
    const auto after =
        std::upper_bound(places_.begin(), places_.end(), address,
                         [](uint64_t wanted, const Place& place) { return wanted < place.begin; });
    return after == places_.begin() ? after->position : std::prev(after)->position;
  }

 private:
  struct Place {
    uint64_t begin = 0;
    uint32_t position = 0;
  };
  std::vector<Place> places_;
};

struct ViewStep {
  uint32_t copies_before = 0;  ///< Steps of copies that stand before it.
  LaunchStep step;
};

/// Finds the places of views' steps among the copies'.
class ViewPlacement {
 public:
  ViewPlacement(std::span<const TouchedByCopy> copies, const std::vector<CopyStep>& steps,
                const LaunchShape& shape)
      : steps_(steps), shape_(shape), read_places_(copies, steps) {}

  [[nodiscard]] ViewStep place(uint32_t item, uint32_t first_tile, const Range& read) const {
    // The view waits for steps [first, end): all that may write what it reads. Those before `first`
    // end before it; those from `end` on begin behind it.
    const auto first =
        std::partition_point(steps_.begin(), steps_.end(),
                             [&](const CopyStep& step) { return step.reach <= read.begin; });
    const auto end = std::partition_point(
        steps_.begin(), steps_.end(), [&](const CopyStep& step) { return step.begin < read.end; });
    if (first >= end) {
      const auto before = std::min<uint64_t>(read_places_.at(read.begin) + 1, steps_.size());
      return {static_cast<uint32_t>(before), {item, first_tile, 0, 0}};
    }
    const auto first_stretch = static_cast<uint64_t>(first - steps_.begin()) / shape_.stretch_steps;
    const uint64_t end_stretch =
        ceil_div(static_cast<uint64_t>(end - steps_.begin()), shape_.stretch_steps);
    const uint64_t before =
        std::min(end_stretch * shape_.stretch_steps + shape_.lag_steps, steps_.size());
    return {static_cast<uint32_t>(before),
            {item, first_tile, static_cast<uint32_t>(first_stretch),
             static_cast<uint32_t>(end_stretch)}};
  }

 private:
  const std::vector<CopyStep>& steps_;
  LaunchShape shape_;
  ReadPlaces read_places_;
};

/// The views' steps by their places.
std::vector<ViewStep> sorted_views(std::span<const TouchedRows> views,
                                   const ViewPlacement& placement, uint32_t first_item) {
  std::vector<ViewStep> steps;
  for (uint32_t i = 0; i < views.size(); ++i) {
    const uint64_t count = steps_of(views[i].grid);
    for (uint32_t tile = 0; tile < count * kStepTiles; tile += kStepTiles) {
      steps.push_back(placement.place(first_item + i, tile, range_of_step(views[i], tile)));
    }
  }
  std::stable_sort(steps.begin(), steps.end(), [](const ViewStep& a, const ViewStep& b) {
    return a.copies_before < b.copies_before;
  });
  return steps;
}

/// Before steps are listed: their numbers must fit.
void check_size(std::span<const TouchedByCopy> copies, std::span<const TouchedRows> views) {
  uint64_t steps = 0;
  for (const auto& copy : copies) steps += steps_of(copy.to.grid);
  for (const auto& view : views) steps += steps_of(view.grid);
  // The limit of a launch's first dimension; items are fewer than steps or empty.
  constexpr uint64_t kMostSteps = std::numeric_limits<int32_t>::max() / kStepTiles;
  const uint64_t items = copies.size() + views.size();
  if (steps > kMostSteps || items > kMostSteps) {
    throw runtime_error(fmt::format(
        "{} copies and {} digests, in {} steps, are too many for one launch, which has {} at most",
        copies.size(), views.size(), steps, kMostSteps));
  }
}

}  // namespace

LaunchOrder order_launch(std::span<const TouchedByCopy> copies, std::span<const TouchedRows> views,
                         const LaunchShape& shape) {
  check_size(copies, views);
  const auto copy_steps = sorted_copies(copies);
  const auto view_steps = sorted_views(views, ViewPlacement(copies, copy_steps, shape),
                                       static_cast<uint32_t>(copies.size()));
  LaunchOrder order;
  order.steps.reserve(copy_steps.size() + view_steps.size());
  order.stretch_tiles.resize(ceil_div(copy_steps.size(), shape.stretch_steps));
  auto view = view_steps.begin();
  for (uint32_t i = 0; i <= copy_steps.size(); ++i) {
    for (; view != view_steps.end() && view->copies_before == i; ++view) {
      order.steps.push_back(view->step);
    }
    if (i == copy_steps.size()) break;
    const auto& copy = copy_steps[i];
    const uint32_t stretch = i / shape.stretch_steps;
    order.steps.push_back({copy.item, copy.first_tile, stretch, stretch});
    order.stretch_tiles[stretch] += tiles_of_step(copies[copy.item].to.grid, copy.first_tile);
  }
  return order;
}

}  // namespace awex::cuda
