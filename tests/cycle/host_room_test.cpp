#include "cycle/host_room.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/error.hpp"

using namespace awex;

namespace {

constexpr uint64_t kGB = 1000000000;

HostBound kernel(uint64_t left) {
  return {0, kUnbounded, left, fixed_text<192>("the kernel (MemAvailable)")};
}

HostBound cgroup(uint64_t group, uint64_t most, uint64_t left) {
  return {group, most, left, fixed_text<192>(fmt::format("memory.max of cgroup /{}", group))};
}

HostClaim claim(const std::string& host, uint64_t wanted, const std::vector<HostBound>& bounds) {
  HostClaim result{{.host = fixed_text<72>(host)}, wanted, {}};
  for (size_t i = 0; i < bounds.size(); ++i) result.bounds.at(i) = bounds[i];
  return result;
}

}  // namespace

TEST_CASE("what fits to the byte is no shortage") {
  const std::vector<HostClaim> claims{
      claim("a", 4 * kGB, {kernel(10 * kGB), cgroup(1, 10 * kGB, 10 * kGB)}),
      claim("a", 6 * kGB, {kernel(10 * kGB), cgroup(1, 10 * kGB, 10 * kGB)}),
      claim("b", 10 * kGB, {kernel(10 * kGB)}), claim("c", 10 * kGB, {})};
  CHECK(host_shortages(claims).empty());
}

TEST_CASE("ranks of a host are counted together, and hosts apart") {
  const std::vector<HostClaim> claims{
      claim("a", 4 * kGB, {kernel(9 * kGB)}), claim("b", 9 * kGB, {kernel(9 * kGB)}),
      claim("a", 6 * kGB, {kernel(8 * kGB)}), claim("a", 0, {kernel(1)})};
  const auto found = host_shortages(claims);
  REQUIRE(found.size() == 1);
  CHECK_FALSE(found[0].is_certain());
  CHECK(found[0].describe() ==
        "2 ranks on host a will hold 10.0 GB of host memory, and the kernel (MemAvailable) has "
        "8.00 GB left for them");
}

TEST_CASE("ranks in cgroups of their own are not added up against one of them") {
  const auto own = [](uint64_t group) { return cgroup(group, 8 * kGB, 8 * kGB); };
  const auto both = cgroup(9, 12 * kGB, 12 * kGB);
  const std::vector<HostClaim> fits{claim("a", 6 * kGB, {own(1), both}),
                                    claim("a", 6 * kGB, {own(2), both})};
  CHECK(host_shortages(fits).empty());
  const std::vector<HostClaim> too_much{claim("a", 7 * kGB, {own(1), both}),
                                        claim("a", 6 * kGB, {own(2), both})};
  const auto found = host_shortages(too_much);
  REQUIRE(found.size() == 1);
  CHECK(found[0].bound.group == 9);
  CHECK(found[0].is_certain());
  CHECK(found[0].describe() ==
        "2 ranks on host a will hold 13.0 GB of host memory, and memory.max of cgroup /9 does not "
        "allow as much");
}

TEST_CASE("a limit that can never be kept goes before one that has less left now") {
  const std::vector<HostClaim> claims{
      claim("a", 9 * kGB, {kernel(1), cgroup(1, 8 * kGB, 7 * kGB), cgroup(2, 20 * kGB, 2 * kGB)})};
  const auto found = host_shortages(claims);
  REQUIRE(found.size() == 1);
  CHECK(found[0].bound.group == 1);
  CHECK(found[0].is_certain());

  const std::vector<HostClaim> may_fit{
      claim("a", 9 * kGB, {kernel(3), cgroup(2, 20 * kGB, 2 * kGB)})};
  REQUIRE(host_shortages(may_fit).size() == 1);
  CHECK(text_of(host_shortages(may_fit)[0].bound.name) == "the kernel (MemAvailable)");
}
