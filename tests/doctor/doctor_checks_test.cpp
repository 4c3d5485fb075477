#include <doctest/doctest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "doctor/examination.hpp"
#include "doctor/gpu_checks.hpp"
#include "doctor/host_memory_check.hpp"
#include "doctor/job_checks.hpp"
#include "doctor/link_speed.hpp"
#include "doctor/machine_checks.hpp"
#include "doctor/sharing.hpp"
#include "doctor/watched_check.hpp"
#include "doctor/wire_examination.hpp"
#include "support/temporary_directory.hpp"

using namespace awex;

namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

NodeIdentity node(const std::string& name) {
  return {fixed_text<72>(name), fixed_text<40>("boot of " + name)};
}

Place place(const std::string& host) {
  Place here;
  here.node = node(host);
  here.pid_namespace = here.ipc_namespace = here.mount_namespace = here.network_namespace = 1;
  here.shm_device = 1;
  here.monotonic_s = host == "a" ? 100 : 90000;
  here.wall_s = 1e9;
  return here;
}

void write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

}  // namespace

TEST_CASE("namespaces are compared among the ranks of a host") {
  std::vector<Place> places{place("a"), place("a"), place("b"), place("b")};
  CHECK(check_namespaces(places, 0, BackendKind::kHost).verdict == Verdict::kPassed);
  places[2].pid_namespace = 9;  // another machine's numbers say nothing
  places[3].pid_namespace = 9;
  CHECK(check_namespaces(places, 1, BackendKind::kHost).verdict == Verdict::kPassed);
  places[3].pid_namespace = 7;
  CHECK(check_namespaces(places, 0, BackendKind::kHost).verdict == Verdict::kPassed);
  const auto apart = check_namespaces(places, 2, BackendKind::kHost);
  CHECK(apart.verdict == Verdict::kFailed);
  CHECK(has(apart.reason, "ranks 2 and 3"));
  CHECK(has(apart.remedy, "--pid=host"));
  CHECK(check_namespaces(places, 3, BackendKind::kHost).reason == apart.reason);
  places[1].ipc_namespace = 5;
  CHECK(check_namespaces(places, 0, BackendKind::kHost).remedy.empty());
  const auto for_gpus = check_namespaces(places, 0, BackendKind::kCuda);
  CHECK(for_gpus.verdict == Verdict::kWaived);
  CHECK(has(for_gpus.remedy, "--ipc=host"));
  places[1].ipc_namespace = 0;  // unknown
  CHECK(check_namespaces(places, 0, BackendKind::kCuda).verdict == Verdict::kPassed);
}

TEST_CASE("clocks of a host are one, dates of hosts are near") {
  std::vector<Place> places{place("a"), place("a"), place("b")};
  CHECK(check_clock(places, 0).verdict == Verdict::kPassed);
  places[1].wall_s += 5;  // it was stopped before it has read the date
  CHECK(check_clock(places, 0).verdict == Verdict::kPassed);
  places[1].wall_s -= 5;
  places[2].wall_s += 5;
  for (size_t rank = 0; rank < 3; ++rank) {
    const auto finding = check_clock(places, rank);
    CHECK(finding.verdict == Verdict::kWaived);
    CHECK(has(finding.reason, "5.0 s apart by date"));
    CHECK(has(finding.remedy, "NTP"));
  }
  places[1].monotonic_s += 3600;
  CHECK(has(check_clock(places, 0).reason, "ranks 0 and 1 are 3600 s apart"));
}

TEST_CASE("a rank tries with the next one that it sees") {
  std::vector<Place> places{place("a"), place("b"), place("a"), place("b"), place("a")};
  CHECK(next_to_try(places, 0) == 2);
  CHECK(next_to_try(places, 1) == 3);
  CHECK(next_to_try(places, 4) == 0);
  places[2].pid_namespace = 4;
  CHECK(next_to_try(places, 0) == 4);
  CHECK(next_to_try(places, 2) == -1);
  CHECK(next_to_try(std::vector<Place>{place("a")}, 0) == 0);
}

TEST_CASE("launchers") {
  Launch launch;
  CHECK(check_launcher(launch, 1).verdict == Verdict::kWaived);
  launch.launcher = Launcher::kSrun;
  launch.in_slurm = true;
  CHECK(check_launcher(launch, 4).reason == "srun --mpi=pmix, 4 ranks");
  const auto one = check_launcher(launch, 1);
  CHECK(one.verdict == Verdict::kFailed);
  CHECK(one.remedy == "srun --mpi=pmix -n 2 awex-colocate doctor");
}

TEST_CASE("a driver is needed where GPUs are, and as new as the binary") {
  using Requested = std::optional<BackendKind>;
  CHECK(check_driver(BackendKind::kHost, {0, 12080}).verdict == Verdict::kWaived);
  CHECK(check_driver(Requested{}, {0, 12080}).verdict == Verdict::kWaived);
  const auto none = check_driver(BackendKind::kCuda, {0, 12080});
  CHECK(none.verdict == Verdict::kFailed);
  CHECK(has(none.remedy, "--gpus all"));
  CHECK(check_driver(BackendKind::kCuda, {0, 0}).reason == "this binary was built without CUDA");
  for (const Requested requested : {Requested{}, Requested{BackendKind::kCuda}}) {
    CHECK(check_driver(requested, {12040, 12080}).verdict == Verdict::kPassed);
    CHECK(check_driver(requested, {13000, 12080}).verdict == Verdict::kPassed);
    const auto old = check_driver(requested, {12040, 13000});
    CHECK(old.verdict == Verdict::kFailed);
    CHECK(old.reason == "driver for CUDA 12.4, binary built with 13.0");
  }
}

TEST_CASE("GPUs that are granted must be seen") {
  using Requested = std::optional<BackendKind>;
  const std::string granted = "CUDA_VISIBLE_DEVICES=0";
  CHECK(check_grant(Requested{}, "", 0, "no driver").verdict == Verdict::kWaived);
  CHECK(check_grant(BackendKind::kCuda, "", 0, "no driver").verdict == Verdict::kFailed);
  CHECK(check_grant(BackendKind::kHost, granted, 0, "").verdict == Verdict::kWaived);
  CHECK(check_grant(Requested{}, granted, 2, "").reason == "2 seen (CUDA_VISIBLE_DEVICES=0)");
  const auto unseen = check_grant(Requested{}, granted, 0, "no driver");
  CHECK(unseen.verdict == Verdict::kFailed);
  CHECK(has(unseen.reason, "no driver"));
  CHECK(has(unseen.remedy, "--backend host"));
}

TEST_CASE("an old GPU is told") {
  GpuFacts gpu{{{}, 0, "Tesla V100"}, 7, 0};
  CHECK(check_capability(gpu).verdict == Verdict::kFailed);
  gpu.capability_major = 9;
  CHECK(check_capability(gpu).verdict == Verdict::kPassed);
}

TEST_CASE("one way of handing descriptors over suffices") {
  const auto verdicts = [](const char* pidfd, const char* socket) {
    const auto [one, two] = judge_ways(pidfd, socket);
    CHECK(one.remedy.empty() == (one.verdict == Verdict::kPassed));
    CHECK(two.remedy.empty() == (two.verdict == Verdict::kPassed));
    return std::pair(one.verdict, two.verdict);
  };
  CHECK(verdicts("", "") == std::pair(Verdict::kPassed, Verdict::kPassed));
  CHECK(verdicts("refused", "") == std::pair(Verdict::kWaived, Verdict::kPassed));
  CHECK(verdicts("", "refused") == std::pair(Verdict::kPassed, Verdict::kWaived));
  CHECK(verdicts("refused", "refused") == std::pair(Verdict::kFailed, Verdict::kFailed));
}

TEST_CASE("what the kernel's files say") {
  const test::TemporaryDirectory directory;
  const auto root = directory.path().string();
  const auto thp = directory.path() / "sys/kernel/mm/transparent_hugepage/enabled";
  CHECK(check_huge_pages(root).verdict == Verdict::kWaived);
  write(thp, "always [madvise] never\n");
  CHECK(check_huge_pages(root).reason == "madvise");
  write(thp, "[always] madvise never\n");
  CHECK(check_huge_pages(root).verdict == Verdict::kPassed);
  write(thp, "always madvise [never]\n");
  CHECK(has(check_huge_pages(root).remedy, "echo madvise > /sys/kernel/mm"));

  const auto yama = directory.path() / "proc/sys/kernel/yama/ptrace_scope";
  CHECK(check_ptrace_scope(root).verdict == Verdict::kPassed);
  write(yama, "0\n");
  CHECK(check_ptrace_scope(root).verdict == Verdict::kPassed);
  for (const char* scope : {"1\n", "2\n", "3\n"}) {
    write(yama, scope);
    const auto finding = check_ptrace_scope(root);
    CHECK(finding.verdict == Verdict::kWaived);
    CHECK(has(finding.remedy, "kernel.yama.ptrace_scope=0"));
  }

  CHECK(describe_numa_nodes(root).empty());
  const auto online = directory.path() / "sys/devices/system/node/online";
  write(online, "0\n");
  CHECK(describe_numa_nodes(root) == "1 NUMA node");
  write(online, "0-1\n");
  CHECK(describe_numa_nodes(root) == "2 NUMA nodes");
  write(online, "0,2-4,8\n");
  CHECK(describe_numa_nodes(root) == "5 NUMA nodes");
}

TEST_CASE("host memory is judged by host and by what its ranks share") {
  const auto claim = [](const char* host, uint64_t group, uint64_t left) {
    HostClaim one{node(host), kLeastHostBytes, {}};
    one.bounds[0] = HostBound{group, kUnbounded, left, fixed_text<192>("memory.max of cgroup /x")};
    return one;
  };
  const uint64_t enough_for_one = kLeastHostBytes + 1;
  const std::vector<HostClaim> claims{claim("a", 1, enough_for_one), claim("a", 1, enough_for_one),
                                      claim("b", 1, enough_for_one)};
  const auto narrow_host = judge_host_memory(claims, node("a"));
  CHECK(narrow_host.verdict == Verdict::kFailed);
  CHECK(has(narrow_host.reason, "memory.max of cgroup /x; 2 ranks need at least 537 MB"));
  CHECK(has(narrow_host.remedy, "--mem of Slurm"));
  CHECK(judge_host_memory(claims, node("b")).verdict == Verdict::kPassed);
  const std::vector<HostClaim> apart{claim("a", 1, enough_for_one), claim("a", 2, enough_for_one)};
  CHECK(judge_host_memory(apart, node("a")).verdict == Verdict::kPassed);
  const HostClaim unbounded{node("a"), kLeastHostBytes, {}};
  CHECK(judge_host_memory({&unbounded, 1}, node("a")).verdict == Verdict::kWaived);
}

TEST_CASE("a slow link of a GPU is told") {
  MeasuredSpeed measured;
  measured.failure = fixed_text<256>("cannot pin");
  CHECK(judge_speed(measured, BackendKind::kHost).verdict == Verdict::kFailed);
  measured.done = 1;
  measured.limits = {2e9, 20e9, 1e12};
  CHECK(judge_speed(measured, BackendKind::kHost).verdict == Verdict::kPassed);
  const auto slow = judge_speed(measured, BackendKind::kCuda);
  CHECK(slow.verdict == Verdict::kWaived);
  CHECK(has(slow.reason, "2 to host, 20 back, 1e+03 on the GPU (GB/s)"));
  CHECK(has(slow.remedy, "nvidia-smi"));
  CHECK(slow.values.front() == std::pair(std::string("to_host_bytes_per_s"), 2e9));
}

TEST_CASE("a check that throws has failed, one that hangs in its time") {
  NoMonitor nobody;
  const CheckTime time(Seconds(0.3), Seconds(0.2));
  CHECK(watch_check([] { return passed("fine"); }, time, nobody) == passed("fine"));
  const auto thrown =
      watch_check([]() -> Finding { throw runtime_error("broken", "mend it"); }, time, nobody);
  CHECK(thrown == failed("broken", "mend it"));
  const auto release = std::make_shared<std::atomic<bool>>(false);
  const Stopwatch watch;
  for (int i = 0; i < 2; ++i) {
    const auto hung = watch_check(
        [release] {
          while (!*release) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          return passed("late");
        },
        time, nobody);
    CHECK(hung.verdict == Verdict::kFailed);
    CHECK(has(hung.reason, "hangs"));
  }
  CHECK(watch.seconds() >= 0.2);
  CHECK(watch.seconds() < 2);
  // What comes after those that hang has its time still.
  CHECK(watch_check([] { return passed("fine"); }, time, nobody).verdict == Verdict::kPassed);
  *release = true;
}

TEST_CASE("what a watched check is interrupted by goes on") {
  class Interrupted final : public WaitMonitor {
   public:
    void poll() override { throw Error(ExitCode::kPeerLost, "rank 1 is gone"); }
  } monitor;
  const CheckTime time(Seconds(5), Seconds(5));
  CHECK_THROWS_WITH_AS(static_cast<void>(watch_check(
                           [] {
                             std::this_thread::sleep_for(std::chrono::milliseconds(200));
                             return passed("late");
                           },
                           time, monitor)),
                       "rank 1 is gone", Error);
}

TEST_CASE("findings travel whole, long texts cut") {
  auto finding = waived("slow", "make it fast");
  finding = with_value(finding, "bytes_per_s", 1.5e9);
  finding = with_value(finding, "limit", 3);
  CHECK(from_wire(to_wire(finding)) == finding);
  const auto longest = from_wire(to_wire(passed(std::string(1000, 'x'))));
  CHECK(longest.reason.size() == 383);
  CHECK(has(longest.reason, "x..."));
}

TEST_CASE("the exit code is that of the worst finding, or of the error") {
  DoctorReport report;
  CHECK(report.exit_code() == ExitCode::kRuntime);  // not finished
  report.finished = true;
  report.ranks.resize(2);
  CHECK(report.exit_code() == ExitCode::kOk);
  report.ranks[1].findings[3] = waived("slower");
  CHECK(report.exit_code() == ExitCode::kOk);
  report.ranks[1].findings[3] = failed("broken", "mend it");
  CHECK(report.exit_code() == ExitCode::kRuntime);
  report.error = Error(ExitCode::kDeadline, "late");
  CHECK(report.exit_code() == ExitCode::kDeadline);
}

TEST_CASE("every check has a name of its own") {
  std::vector<std::string> names;
  for (size_t check = 0; check < kChecks; ++check) {
    const std::string name = check_name(static_cast<Check>(check));
    CHECK(name != "unknown");
    CHECK(name.size() < 16);  // the table's column
    CHECK(std::find(names.begin(), names.end(), name) == names.end());
    names.push_back(name);
  }
}
