#include "support/refused_memory.hpp"

#include <fcntl.h>

#include <atomic>
#include <cerrno>
#include <utility>

namespace {

std::atomic<bool> g_refuses{false};
std::atomic<bool> g_has_refused{false};
std::atomic<int> g_spared{0};
std::function<void()> g_refused;

}  // namespace

extern "C" {

int __real_fallocate(int fd, int mode, off_t offset, off_t bytes);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes) {
  if (mode == 0 && awex::test::refuses_now()) {
    errno = ENOMEM;
    return -1;
  }
  return __real_fallocate(fd, mode, offset, bytes);
}

}  // extern "C"

namespace awex::test {

void refuse_memory(std::function<void()> refused, int spared) {
  g_spared = spared;
  g_refused = std::move(refused);
  g_has_refused = false;
  g_refuses = true;
}

void allow_memory() { g_refuses = false; }

bool has_refused_memory() { return g_has_refused; }

bool refuses_now() {
  if (!g_refuses || --g_spared >= 0) return false;
  g_refuses = false;
  g_has_refused = true;
  if (g_refused) g_refused();
  return true;
}

}  // namespace awex::test
