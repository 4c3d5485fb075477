#pragma once

#include <vector>

#include "comm/job.hpp"
#include "cycle/budget.hpp"
#include "cycle/hand_over.hpp"
#include "cycle/options.hpp"
#include "cycle/roster.hpp"
#include "cycle/world.hpp"
#include "engine/engine.hpp"
#include "memory/region.hpp"

namespace awex {

/// Everything about a job that is settled before memory is taken.
struct Setup {
  World world;
  Roster roster;
  HandOver hand_over;
  Budget budget;
};

/// The trainer's tags that a command offloads, beginning with the first of an update.
[[nodiscard]] std::vector<Tag> offloaded_tags(Command command, const JobOptions& options);

/// Checks that all ranks want the same, reads the model and makes the layouts before any device is
/// opened; then pairs the devices, waits for the engines that attach, makes and proves this
/// device's part of the plan, and checks that the peak fits. Throws agreed errors. Collective.
[[nodiscard]] Setup prepare(Job& job, const Request& request, const EngineFactory& engines);

/// What can be said of model and layouts without knowing the number of ranks: reads config.json, no
/// weights. Throws the request errors of reading it and of the specs. Not collective; needs no MPI.
void check_model_and_layouts(const JobOptions& options);

}  // namespace awex
