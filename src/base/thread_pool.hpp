#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace awex {

/// A fixed set of worker threads for host-side work (copies, digests, touching pages).
class ThreadPool {
 public:
  /// Starts `threads` workers in all, the calling thread counted as one; 0 means one. Throws a
  /// run-time error when the system refuses a thread.
  explicit ThreadPool(size_t threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ThreadPool(ThreadPool&&) = delete;
  ThreadPool& operator=(ThreadPool&&) = delete;
  ~ThreadPool();

  [[nodiscard]] size_t threads() const;

  /// Calls work(i) for every i in [0, count), spread over the threads, and returns when all are
  /// done. The first exception thrown by a call is rethrown here. Not reentrant.
  void for_each(size_t count, const std::function<void(size_t)>& work);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace awex
