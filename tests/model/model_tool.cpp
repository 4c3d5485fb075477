// For tests that compare with other programs: `model_tool digest MODEL` prints digests as
// scripts/digest.py does, `model_tool write MODEL DIR MAX_SHARD_BYTES` writes a checkpoint.
#include <fmt/core.h>

#include <map>
#include <string>

#include "base/error.hpp"
#include "model/checkpoint.hpp"
#include "model/weights.hpp"

namespace {

using namespace awex;

void print_digests(const WeightSource& source, ThreadPool& pool) {
  const auto digests = digest_source(source, pool);
  std::map<std::string, uint64_t> by_name;
  for (size_t i = 0; i < digests.size(); ++i) {
    by_name[source.catalogue().tensors()[i].name] = digests[i];
  }
  for (const auto& [name, digest] : by_name) fmt::print("{:#018x}  {}\n", digest, name);
  fmt::print("{:#018x}  model\n", model_digest(source.catalogue(), digests));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 2 ? argv[1] : "";
  try {
    ThreadPool pool(2);
    if (command == "digest" && argc == 3) {
      print_digests(*open_model(argv[2], std::nullopt), pool);
    } else if (command == "write" && argc == 5) {
      write_checkpoint(*open_model(argv[2], std::nullopt), argv[3], std::stoull(argv[4]), pool);
    } else {
      fmt::print(stderr, "usage: model_tool digest MODEL | write MODEL DIR MAX_SHARD_BYTES\n");
      return 2;
    }
  } catch (const Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
