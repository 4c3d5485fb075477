#include "cycle/world.hpp"

#include <doctest/doctest.h>

#include <string>

namespace awex {
namespace {

constexpr auto kTrainer = Role::kTrainer;
constexpr auto kInference = Role::kInference;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("nodes with as many trainers as inference ranks are no error, whatever their sizes") {
  CHECK_FALSE(misplaced_ranks({"a", "a"}, {kTrainer, kInference}));
  CHECK_FALSE(misplaced_ranks({"a", "b", "a", "b", "b", "b"},
                              {kTrainer, kTrainer, kInference, kTrainer, kInference, kInference}));
}

TEST_CASE("odd ranks on nodes are listed by host") {
  const auto error = misplaced_ranks({"alpha", "beta", "beta", "beta"},
                                     {kInference, kTrainer, kInference, kInference});
  REQUIRE(error);
  CHECK(error->code() == ExitCode::kRequest);
  CHECK(contains(error->what(), "alpha has 0 trainers and 1 inference"));
  CHECK(contains(error->what(), "beta has 1 trainer and 2 inference"));
  CHECK(contains(error->what(), "4 ranks: 1 on alpha, 3 on beta"));
  CHECK(contains(error->hint(), "ppr:2:node"));
}

TEST_CASE("roles that were given to whole nodes are found, though their numbers agree") {
  const auto error =
      misplaced_ranks({"a", "a", "b", "b"}, {kTrainer, kTrainer, kInference, kInference});
  REQUIRE(error);
  CHECK(contains(error->what(), "a has 2 trainers and 0 inference"));
  CHECK(contains(error->what(), "b has 0 trainers and 2 inference"));
}

TEST_CASE("of very many hosts the first are listed") {
  std::vector<std::string> hosts;
  for (int i = 100; i < 150; ++i) hosts.push_back("h" + std::to_string(i));
  const auto error = misplaced_ranks(hosts, std::vector<Role>(hosts.size(), kInference));
  REQUIRE(error);
  CHECK(contains(error->what(), "1 on h115"));
  CHECK(contains(error->what(), "and 34 more hosts"));
  CHECK_FALSE(contains(error->what(), "h116"));
}

}  // namespace
}  // namespace awex
