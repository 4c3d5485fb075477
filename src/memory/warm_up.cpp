#include "memory/warm_up.hpp"

#include <algorithm>
#include <system_error>

#include "base/units.hpp"

namespace awex {
namespace {

std::string describe(const Region& region) {
  return fmt::format("host memory for \"{}\" ({})", region.name(), format_bytes(region.bytes()));
}

/// Says which region's preparation failed and how far it had come.
[[noreturn]] void rethrow(const std::exception_ptr& failure, const Region& region) {
  const auto attempt = fmt::format("cannot prepare {}, {} of it done: ", describe(region),
                                   format_bytes(region.host_bytes()));
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    throw Error(error.code(), attempt + error.what(), error.hint())
        .about_tag(tag_name(region.tag()));
  } catch (const std::exception& error) {
    throw runtime_error(attempt + error.what()).about_tag(tag_name(region.tag()));
  }
}

}  // namespace

WarmUp::WarmUp(const std::vector<Region*>& regions) {
  for (Region* region : regions) tasks_.emplace_back(region);
  try {
    thread_ = std::jthread([this](const std::stop_token& stop) {
      for (auto& task : tasks_) prepare(task, stop);
    });
  } catch (const std::system_error& error) {
    throw runtime_error(
        fmt::format("cannot start the thread that prepares host memory: {}", error.what()),
        "leave out --warm-host-memory, or see the limits of threads and memory: ulimit -u, ulimit "
        "-v, and pids.max of the cgroup");
  }
}

void WarmUp::prepare(Task& task, const std::stop_token& stop) {
  const Stopwatch watch;
  try {
    task.region->prepare_backup(stop);
  } catch (...) {
    task.failure = std::current_exception();
  }
  task.seconds = watch.seconds();
  task.is_done = true;
}

/// The bytes of host memory that are there and that will be once a task is done: regions are
/// prepared in their order.
std::pair<uint64_t, uint64_t> WarmUp::progress_until(const Task& last) const {
  uint64_t done = 0;
  uint64_t all = 0;
  for (const auto& task : tasks_) {
    done += task.region->host_bytes();
    all += task.region->bytes();
    if (&task == &last) break;
  }
  return {done, all};
}

std::optional<WarmUp::Prepared> WarmUp::finish(const Region& region, const Deadline& deadline,
                                               WaitMonitor& monitor) {
  const auto task = std::find_if(tasks_.begin(), tasks_.end(),
                                 [&](const Task& one) { return one.region == &region; });
  if (task == tasks_.end() || task->is_told) return std::nullopt;
  uint64_t told = 0;
  const auto is_done = [&] {
    if (task->is_done) return true;
    const auto [done, all] = progress_until(*task);
    if (done > told) monitor.progressed(host_memory_progress(told = done, all));
    return false;
  };
  wait_until(is_done, "the preparation of " + describe(region), deadline, monitor);
  if (told > 0) monitor.progressed(host_memory_progress(told, told));
  if (task->failure) rethrow(task->failure, region);
  task->is_told = true;
  return Prepared{region.host_bytes(), task->seconds};
}

}  // namespace awex
