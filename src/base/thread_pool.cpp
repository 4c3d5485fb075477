#include "base/thread_pool.hpp"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.hpp"

// oneTBB, the only pool that both Debian 12 and Ubuntu 24.04 have, copies and digests no faster
// (benchmarks/host_copies), and its loops drop the items that are left when one throws.

namespace awex {

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable finished;
  const std::function<void(size_t)>* work = nullptr;
  size_t count = 0;
  std::atomic<size_t> next{0};
  size_t running = 0;
  uint64_t round = 0;
  bool stopping = false;
  std::exception_ptr first_failure;
  std::vector<std::thread> workers;

  void take_items() {
    for (size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      try {
        (*work)(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first_failure) first_failure = std::current_exception();
      }
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    for (auto& worker : workers) worker.join();
  }

  void run_worker() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      wake.wait(lock, [&] { return stopping || round != seen; });
      if (stopping) return;
      seen = round;
      lock.unlock();
      take_items();
      lock.lock();
      if (--running == 0) finished.notify_one();
    }
  }
};

ThreadPool::ThreadPool(size_t threads) : state_(std::make_unique<State>()) {
  try {
    for (size_t i = 1; i < threads; ++i) {
      state_->workers.emplace_back([state = state_.get()] { state->run_worker(); });
    }
  } catch (const std::system_error& error) {
    const size_t started = state_->workers.size();
    state_->stop();
    throw runtime_error(
        fmt::format("cannot start thread {} of {}: {}", started + 2, threads, error.what()),
        "see the limits of threads and memory: ulimit -u, ulimit -v, and pids.max of the cgroup");
  }
}

ThreadPool::~ThreadPool() { state_->stop(); }

size_t ThreadPool::threads() const { return state_->workers.size() + 1; }

void ThreadPool::for_each(size_t count, const std::function<void(size_t)>& work) {
  auto& state = *state_;
  {
    const std::lock_guard lock(state.mutex);
    state.work = &work;
    state.count = count;
    state.next = 0;
    state.running = state.workers.size();
    state.first_failure = nullptr;
    ++state.round;
  }
  state.wake.notify_all();
  state.take_items();
  std::unique_lock lock(state.mutex);
  state.finished.wait(lock, [&] { return state.running == 0; });
  if (state.first_failure) std::rethrow_exception(state.first_failure);
}

}  // namespace awex
