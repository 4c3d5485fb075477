#include "base/work_progress.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

namespace awex::work {
namespace {

struct OpenRead {
  std::string file;
  uint64_t file_bytes = 0;
};

/// Reads that threads are at work on, the oldest first.
struct Reads {
  std::mutex mutex;
  uint64_t next = 0;
  std::map<uint64_t, OpenRead> open;
};

// Never destroyed: a thread that a disk holds may come back while the process ends.
Reads& reads() {
  static auto* const instance = new Reads;
  return *instance;
}

std::atomic<uint64_t> g_advanced{0};
std::atomic<bool> g_given_up{false};

std::optional<OpenRead> oldest_read() {
  auto& all = reads();
  const std::lock_guard lock(all.mutex);
  if (all.open.empty()) return std::nullopt;
  return all.open.begin()->second;
}

/// What the thread and the one that waits for it share.
struct Shared {
  std::mutex mutex;
  std::condition_variable wake;
  bool done = false;
  std::exception_ptr failure;
};

void run(const std::shared_ptr<Shared>& shared, const std::function<void()>& work) {
  std::exception_ptr failure;
  try {
    work();
  } catch (...) {
    failure = std::current_exception();
  }
  const std::lock_guard lock(shared->mutex);
  shared->failure = failure;
  shared->done = true;
  shared->wake.notify_one();
}

bool wait_for_end(Shared& shared, std::chrono::milliseconds longest) {
  std::unique_lock lock(shared.mutex);
  return shared.wake.wait_for(lock, longest, [&] { return shared.done; });
}

std::string amount(uint64_t done, uint64_t all) {
  return all == 0 ? format_bytes(done)
                  : fmt::format("{} of {}", format_bytes(done), format_bytes(all));
}

Error silent(const Task& task, uint64_t done, Seconds silence) {
  if (!task.reads) {
    return Error(ExitCode::kDeadline,
                 fmt::format("{}: {} done, then nothing more for {}", task.what,
                             amount(done, task.all_bytes), format_seconds(silence.count())),
                 kDeadlineHint);
  }
  const auto read = oldest_read();
  const auto where =
      read ? fmt::format(", from {} ({})", read->file, format_bytes(read->file_bytes)) : "";
  return Error(ExitCode::kDeadline,
               fmt::format("{}: {} read, then nothing more for {}{}", task.what,
                           amount(done, task.all_bytes), format_seconds(silence.count()), where),
               "the storage hangs: see dmesg, and whether `cat` reads the file; a longer --timeout "
               "helps only when it is slow");
}

/// Watches the work until it is done. `start` is advanced() from before it began.
void watch(Shared& shared, const Task& task, uint64_t start, Seconds silence,
           WaitMonitor& monitor) {
  uint64_t seen = start;
  std::optional<Deadline> deadline(silence);
  monitor.progressed({task.what, "", task.done_bytes, task.all_bytes, false});
  while (!wait_for_end(shared, std::chrono::milliseconds(1))) {
    monitor.poll();
    const uint64_t now = advanced();
    const uint64_t done = task.done_bytes + (now - start);
    if (now != seen) {
      seen = now;
      deadline.emplace(silence);
      const auto read = oldest_read();
      monitor.progressed({task.what, read ? read->file : "", done, task.all_bytes, false});
    }
    if (deadline->expired()) throw silent(task, done, silence);
  }
  monitor.progressed({task.what, "", task.done_bytes + (advanced() - start), task.all_bytes, true});
}

}  // namespace

FileRead::FileRead(const std::string& file, uint64_t file_bytes) : id_(0) {
  if (g_given_up) throw runtime_error(fmt::format("reading {} was given up", file));
  auto& all = reads();
  const std::lock_guard lock(all.mutex);
  id_ = all.next++;
  all.open[id_] = {file, file_bytes};
}

FileRead::~FileRead() {
  auto& all = reads();
  const std::lock_guard lock(all.mutex);
  all.open.erase(id_);
}

void advance(uint64_t bytes) { g_advanced += bytes; }

uint64_t advanced() { return g_advanced; }

void attend(std::function<void()> work, const Task& task, Seconds silence, WaitMonitor& monitor) {
  const auto shared = std::make_shared<Shared>();
  const uint64_t start = advanced();
  std::thread thread;
  try {
    thread = std::thread([shared, work = std::move(work)] { run(shared, work); });
  } catch (const std::system_error& error) {
    throw runtime_error(
        fmt::format("cannot start a thread for {}: {}", task.what, error.what()),
        "see the limits of threads and memory: ulimit -u, ulimit -v, and pids.max of the cgroup");
  }
  try {
    watch(*shared, task, start, silence, monitor);
  } catch (...) {
    constexpr std::chrono::milliseconds kGrace{50};
    g_given_up = true;
    const bool ended = wait_for_end(*shared, kGrace);
    ended ? thread.join() : thread.detach();
    g_given_up = !ended;
    throw;
  }
  thread.join();
  if (shared->failure) std::rethrow_exception(shared->failure);
}

}  // namespace awex::work
