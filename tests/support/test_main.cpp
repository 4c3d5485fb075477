// The main of single-process tests: a run in which no test case ran is a failure.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "support/ran_cases.hpp"

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int failed = context.run();
  if (context.shouldExit()) return failed;
  if (awex::test::ran_cases() == 0) {
    std::fputs("no test case ran\n", stderr);
    return 1;
  }
  return failed;
}
