// The main of tests that run under mpirun. The verdict is everyone's: each rank fails if any did,
// and a run in which no test case ran is a failure.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <iostream>
#include <sstream>

#include "base/log.hpp"
#include "support/mpi_job.hpp"
#include "support/ran_cases.hpp"

namespace awex::test {
namespace {

Job* g_job = nullptr;

int run_cases(int argc, char** argv) {
  doctest::Context context(argc, argv);
  std::ostringstream output;
  const int rank = g_job->rank();
  if (rank != 0) context.setCout(&output);
  int failed = context.run();
  if (!context.shouldExit() && ran_cases() == 0) {
    output << "no test case ran\n";
    failed = 1;
  }
  if (failed != 0) std::cerr << fmt::format("---- rank {} failed\n{}", rank, output.str());
  return failed;
}

/// 0 when every rank has passed.
int reduce_verdict(bool failed) {
  uint64_t failures = failed ? 1 : 0;
  g_job->all_reduce_sum({&failures, 1}, "verdict of the test");
  return failures == 0 ? 0 : 1;
}

}  // namespace

Job& job() { return *g_job; }

}  // namespace awex::test

int main(int argc, char** argv) {
  constexpr awex::Seconds kTimeout{60};
  awex::Job job(&argc, &argv, kTimeout);
  awex::test::g_job = &job;
  try {
    job.set_peers(awex::test::gather_peers(job));
    const int verdict = awex::test::reduce_verdict(awex::test::run_cases(argc, argv) != 0);
    job.finish();
    return verdict;
  } catch (const awex::Error& error) {
    const awex::Error cause = job.announce_failure(error);
    awex::log::error(cause);
    job.abort(cause.code());
  }
}
