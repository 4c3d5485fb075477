#include "base/error.hpp"

#include <cerrno>
#include <cstring>

namespace awex {
namespace {

/// What one can do; empty where that depends on the call.
std::string hint_for(int error_number) {
  switch (error_number) {
    case ENOSPC:
      return "make room there (df -h) or name another place";
    case EDQUOT:
      return "your quota there is used up: make room or name another place";
    case EMFILE:
      return "this process has too many open files: raise the limit (ulimit -n)";
    case ENFILE:
      return "this machine has too many open files: close some, or raise fs.file-max (ulimit -n is "
             "each process's own limit)";
    case EFBIG:
      return "the limit of a file's size is reached: raise it (ulimit -f), or name a file system "
             "that takes larger files";
    case ENOMEM:
      return "free host memory, or raise what the cgroup or the batch job allows "
             "(free -g, ulimit -a)";
    case EACCES:
    case EPERM:
    case EROFS:
      return "see whether this user and container may do it (id, ls -l, mount)";
    case EIO:
      return "the disk or its server has failed: see dmesg";
    default:
      return {};
  }
}

}  // namespace

Error errno_error(const std::string& attempt, const char* call, int error_number) {
  return runtime_error(fmt::format("cannot {}: {}: {} ({})", attempt, call,
                                   std::strerror(error_number), error_number),
                       hint_for(error_number));
}

std::string called_function(const char* call) {
  const std::string text(call);
  return text.substr(0, text.find('('));
}

void throw_failed_call(const std::string& attempt, const char* call,
                       const std::string& description) {
  throw runtime_error(
      fmt::format("cannot {}: {}: {}", attempt, called_function(call), description));
}

}  // namespace awex
