#include "memory/host_memory.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "support/temporary_directory.hpp"

using namespace awex;

namespace {

constexpr uint64_t kGB = 1000000000;

/// The files of a machine that says what a test lets it say.
class FakeMachine {
 public:
  void put(const std::string& path, const std::string& content) const {
    const auto file = root_.path() / path;
    std::filesystem::create_directories(file.parent_path());
    test::write_file(file, content);
  }
  [[nodiscard]] std::vector<HostBound> bounds() const {
    return host_memory_bounds(root_.path().string());
  }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& bound : bounds()) names.push_back(text_of(bound.name));
    return names;
  }

 private:
  test::TemporaryDirectory root_;
};

}  // namespace

TEST_CASE("a machine that says nothing bounds nothing") {
  const FakeMachine machine;
  CHECK(machine.bounds().empty());
}

TEST_CASE("what the kernel would give bounds what is left, but not what can be") {
  const FakeMachine machine;
  machine.put("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable:    1000 kB\nHugePages_Total: 0\n");
  const auto bounds = machine.bounds();
  REQUIRE(bounds.size() == 1);
  CHECK(bounds[0].left_bytes == 1024000);
  CHECK(bounds[0].most_bytes == kUnbounded);
  CHECK(text_of(bounds[0].name) == "the kernel (MemAvailable)");
}

TEST_CASE(
    "limits of version 2 count for a group and all that it is in, less what can be taken back") {
  const FakeMachine machine;
  machine.put("proc/self/cgroup", "0::/slurm/job_7/step_0\n");
  machine.put("proc/meminfo", "SwapTotal: 1000 kB\n");
  const std::string base = "sys/fs/cgroup/slurm/job_7/";
  machine.put(base + "step_0/memory.max", "max\n");
  machine.put(base + "step_0/memory.current", "5000000000\n");
  machine.put(base + "memory.max", "32000000000\n");
  machine.put(base + "memory.high", "30000000000\n");
  machine.put(base + "memory.current", "10000000000\n");
  machine.put(base + "memory.stat",
              "anon 1\ninactive_file 3000000000\nactive_file 1000000000\nslab_reclaimable "
              "500000000\nslab 7\n");
  machine.put("sys/fs/cgroup/slurm/memory.max", "64000000000\n");
  machine.put("sys/fs/cgroup/slurm/memory.current", "1000000000\n");
  CHECK(machine.names() == std::vector<std::string>{"memory.max of cgroup /slurm/job_7 (32.0 GB)",
                                                    "memory.high of cgroup /slurm/job_7 (30.0 GB)",
                                                    "memory.max of cgroup /slurm (64.0 GB)"});
  const auto bounds = machine.bounds();
  CHECK(bounds[0].most_bytes == 32 * kGB + 1024000);
  CHECK(bounds[0].left_bytes == 32 * kGB - (10 * kGB - 4500000000));
  CHECK(bounds[1].most_bytes == kUnbounded);
  CHECK(bounds[1].left_bytes == 30 * kGB - (10 * kGB - 4500000000));
  CHECK(bounds[2].left_bytes == 63 * kGB);
  CHECK(bounds[0].group == bounds[1].group);
  CHECK(bounds[0].group != bounds[2].group);
}

TEST_CASE("the limits of a container lie in its root, of either version") {
  const FakeMachine two;
  two.put("proc/self/cgroup", "0::/\n");
  two.put("sys/fs/cgroup/memory.max", "8000000000\n");
  two.put("sys/fs/cgroup/memory.current", "9000000000\n");
  CHECK(two.names() == std::vector<std::string>{"memory.max of cgroup / (8.00 GB)"});
  CHECK(two.bounds()[0].left_bytes == 0);

  const FakeMachine one;
  one.put("proc/self/cgroup", "9:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n");
  // The path is the host's; what is mounted is the container's own group.
  one.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "8000000000\n");
  one.put("sys/fs/cgroup/memory/memory.usage_in_bytes", "3000000000\n");
  one.put("sys/fs/cgroup/memory/memory.stat",
          "inactive_file 9\ntotal_inactive_file 500000000\ntotal_active_file 500000000\n");
  CHECK(one.names() == std::vector<std::string>{"memory.limit_in_bytes of cgroup / (8.00 GB)"});
  CHECK(one.bounds()[0].left_bytes == 6 * kGB);
  CHECK(one.bounds()[0].most_bytes == 8 * kGB);
}

TEST_CASE("no limit is none, however it is written") {
  const FakeMachine machine;
  machine.put("proc/self/cgroup", "4:memory:/a\n0::/b\nnonsense\n");
  machine.put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
  machine.put("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1\n");
  machine.put("sys/fs/cgroup/b/memory.max", "max\n");
  machine.put("sys/fs/cgroup/b/memory.current", "1\n");
  CHECK(machine.bounds().empty());
}

TEST_CASE("this machine can be asked") {
  for (const auto& bound : host_memory_bounds()) {
    CHECK_FALSE(text_of(bound.name).empty());
    CHECK(bound.left_bytes <= bound.most_bytes);
    CHECK(bound.left_bytes < kUnbounded);
  }
}

TEST_CASE("the limit of locked memory is told as it is in force") {
  struct rlimit limit {};
  REQUIRE(::getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
  const struct rlimit lowered { std::min<rlim_t>(65536, limit.rlim_max), limit.rlim_max };
  REQUIRE(::setrlimit(RLIMIT_MEMLOCK, &lowered) == 0);
  CHECK(describe_locked_memory_limit() == "65.5 kB");
  REQUIRE(::setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
}
