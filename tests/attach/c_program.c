/* The header and the library as a C11 program uses them. */
#include <stdio.h>
#include <string.h>

#include "awex_colocate.h"

static int failures = 0;

static void check(int fits, const char* what) {
  if (fits) return;
  fprintf(stderr, "failed: %s\n", what);
  ++failures;
}

static int on_release(void* user, awex_tag tag, uint64_t version) {
  (void)user;
  return tag == AWEX_WEIGHTS && version > 0 ? 0 : 1;
}

int main(void) {
  awex_attach_options options = {0};
  awex_engine* engine = NULL;
  void* (*allocate)(ssize_t, int, void*) = awex_alloc;
  void (*release)(void*, ssize_t, int, void*) = awex_free;

  check(awex_abi_version() == AWEX_ABI_VERSION, "the ABI's version");
  check(strncmp(awex_build(), "0.1.0+", 6) == 0, "the build");
  check(strcmp(awex_error(), "") == 0, "no error at first");

  options.struct_size = sizeof options;
  options.job = "/nowhere/at/all";
  options.role = AWEX_INFERENCE;
  options.name = "c program";
  options.timeout_s = 0.05;
  check(awex_attach(&options, &engine) == AWEX_DEADLINE, "nobody to attach to");
  check(engine == NULL, "no engine");
  check(strstr(awex_error(), "there is no such directory") != NULL, "why");
  check(strchr(awex_error(), '\n') != NULL, "and what to do");

  check(awex_before_release(engine, on_release, NULL) == AWEX_WRONG_REQUEST, "no engine to call");
  check(allocate(512, 0, NULL) == NULL, "no memory without an engine");
  release(NULL, 0, 0, NULL);
  awex_detach(engine);
  return failures == 0 ? 0 : 1;
}
