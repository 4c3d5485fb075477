"""Storage and memory that are slow or hang: a library for LD_PRELOAD, through which programs read
.safetensors files and get large blocks of host memory."""

import os

from preloaded import build_preloaded, preloading

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

/* Each read takes STORAGE_MS; rank STORAGE_HANG_RANK's do not end after the first STORAGE_HANG_AFTER. */
static void delay(int fd) {
  static atomic_int reads;
  char link[64], name[512];
  const char *ms = getenv("STORAGE_MS"), *rank = getenv("OMPI_COMM_WORLD_RANK");
  const char *hangs = getenv("STORAGE_HANG_RANK"), *after = getenv("STORAGE_HANG_AFTER");
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, name, sizeof(name) - 1);
  if (length <= 0) return;
  name[length] = 0;
  if (!strstr(name, ".safetensors")) return;
  if (ms) usleep(1000 * atoi(ms));
  if (hangs && after && rank && !strcmp(rank, hangs) && atomic_fetch_add(&reads, 1) >= atoi(after)) {
    while (1) pause();
  }
}
/* Each block of host memory of 16 MiB or more takes STORAGE_MEMORY_MS. */
int madvise(void *block, size_t bytes, int advice) {
  const char *ms = getenv("STORAGE_MEMORY_MS");
  if (ms && bytes >= 16 << 20 && advice == MADV_HUGEPAGE) usleep(1000 * atoi(ms));
  return ((int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "madvise"))(block, bytes, advice);
}
typedef ssize_t (*reader)(int, void *, size_t, off_t);
ssize_t pread64(int fd, void *to, size_t bytes, off_t at) {
  delay(fd);
  return ((reader)dlsym(RTLD_NEXT, "pread64"))(fd, to, bytes, at);
}
ssize_t pread(int fd, void *to, size_t bytes, off_t at) {
  delay(fd);
  return ((reader)dlsym(RTLD_NEXT, "pread"))(fd, to, bytes, at);
}
"""


def build_storage(directory):
    """The library's path; ends the test as skipped where there is no C compiler."""
    return build_preloaded(directory, "storage", SOURCE, "slow storage")


def variables_of(library, settings):
    return {**preloading(library), **{f"STORAGE_{name.upper()}": str(value) for name, value in settings.items()}}


def through_storage(library, **settings):
    """Arguments of mpirun that put the ranks' reads under STORAGE_<setting> each."""
    return [argument for name, value in variables_of(library, settings).items()
            for argument in ("-x", f"{name}={value}")]


def environment_of(library, **settings):
    """The environment of a program that runs alone and reads so."""
    return {**os.environ, **variables_of(library, settings)}
