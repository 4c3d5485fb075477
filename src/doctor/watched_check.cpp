#include "doctor/watched_check.hpp"

#include <algorithm>
#include <exception>
#include <memory>
#include <utility>

#include "base/work_progress.hpp"

namespace awex {
namespace {

constexpr Seconds kLeast{0.1};

/// Asks another monitor, remembers what that threw, and tells it nothing: a check that hangs must
/// not renew anybody's deadline.
class SilentMonitor final : public WaitMonitor {
 public:
  explicit SilentMonitor(WaitMonitor& asked) : asked_(asked) {}

  void poll() override {
    try {
      asked_.poll();
    } catch (...) {
      thrown_ = std::current_exception();
      throw;
    }
  }
  void rethrow() const {
    if (thrown_) std::rethrow_exception(thrown_);
  }

 private:
  WaitMonitor& asked_;
  std::exception_ptr thrown_;
};

}  // namespace

Seconds CheckTime::next() const {
  return std::max(kLeast, std::min(each_, together_ - Seconds(watch_.seconds())));
}

Finding watch_check(std::function<Finding()> check, const CheckTime& time, WaitMonitor& monitor) {
  const auto found = std::make_shared<Finding>();
  SilentMonitor silent(monitor);
  const Seconds longest = time.next();
  try {
    work::attend([found, check = std::move(check)] { *found = check(); },
                 {"a check of the doctor", 0, 0, false}, longest, silent);
  } catch (const Error& error) {
    silent.rethrow();
    if (error.code() != ExitCode::kDeadline) return failed(error);
    return failed(fmt::format("hangs: no answer after {}", format_seconds(longest.count())),
                  "see what the kernel says (dmesg) and where the process waits (gdb -p PID); a "
                  "longer --timeout helps only where it is slow");
  } catch (const std::exception& error) {
    silent.rethrow();
    return failed(error.what(), "this is a fault of awex-colocate: please report it");
  }
  return *found;
}

}  // namespace awex
