#include "base/nearest.hpp"

#include <doctest/doctest.h>

using namespace awex;

TEST_CASE("a misspelt name finds the one that was meant") {
  CHECK(nearest_name("megatorn", {"fsdp", "megatron", "hf"}) == "megatron");
  CHECK(nearest_name("optimzer", {"optimizer", "timeout"}) == "optimizer");
}

TEST_CASE("a name that is near to none finds none") {
  CHECK(nearest_name("zebra", {"fsdp", "megatron", "hf"}).empty());
  CHECK(nearest_name("anything", {}).empty());
}

TEST_CASE("the suggestion is the near name, or all there are") {
  CHECK(suggestion("megatorn", {"fsdp", "megatron"}) == "did you mean \"megatron\"?");
  CHECK(suggestion("zebra", {"fsdp", "megatron"}) == "known: fsdp, megatron");
}
