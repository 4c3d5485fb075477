#include "cli/render_status.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <sstream>
#include <string>

#include "serve/job_status.hpp"

namespace awex {
namespace {

RankStatus::Memory memory(RegionState state, uint64_t bytes, uint64_t host_bytes = 0) {
  return {state, bytes, bytes - host_bytes, host_bytes};
}

/// A trainer and an inference rank on one GPU, after an update and a failure.
JobStatus sample_status() {
  JobStatus status;
  status.activity = JobStatus::Activity::kRunning;
  status.command = "update";
  status.phase = "transfer";
  status.since_s = 1.5;
  status.queued = 2;
  status.commands = 7;
  status.failures = 1;
  status.started_at = "2026-05-04T03:02:01Z";
  status.build = "0.1.0+g0123456789ab";
  status.backend = "cuda";
  status.model_name = "qwen3-4b";
  status.trainer = "megatron:tp=1";
  status.inference = "sglang:tp=1";
  status.content = ContentState::kCommitted;
  status.committed_version = 6;
  status.memory.device_peak_bytes = 64'000'000'000;
  status.memory.host_pinned_bytes = 56'000'000'000;
  status.memory.leaked_bytes = 0;
  status.rank_infos = {{0, "trainer", "alpha", "0 NVIDIA H100"},
                       {1, "inference", "alpha", "0 NVIDIA H100"}};
  RankStatus trainer;
  trainer.pid = 4711;
  trainer.engine = fixed_text<32>("stand-in");
  trainer.memory[0] = memory(RegionState::kOffloaded, 8'000'000'000, 8'000'000'000);
  trainer.memory[1] = memory(RegionState::kOffloading, 48'000'000'000, 47'000'000'000);
  trainer.staging_bytes = 33'554'432;
  trainer.device_free_bytes = 20'000'000'000;
  trainer.device_total_bytes = 80'000'000'000;
  trainer.resident_set_bytes = 1'204'000'000;
  trainer.host_limit_bytes = 128'000'000'000;
  trainer.host_used_bytes = 61'200'000'000;
  trainer.lock_limit_bytes = 64'000'000'000;
  trainer.steps = 6;
  auto inference = trainer;
  inference.pid = 4712;
  inference.memory = {memory(RegionState::kResident, 8'044'936'192), std::nullopt,
                      memory(RegionState::kDiscarded, 512'000'000)};
  inference.steps = 0;
  status.ranks = {trainer, inference};
  status.last_error =
      Error(ExitCode::kDeadline, "weights are not sent after 30.0 s", "see what that process does");
  status.last_error->context() = {1, "alpha", "0", "inference", "transfer", "weights", ""};
  status.last_error_at = "2026-05-04T03:03:00Z";
  return status;
}

std::string shown(const JobStatus& status) { return render_status(render_status_json(status), {}); }

std::string shown_line(const JobStatus& status, const std::string& key) {
  std::istringstream lines(shown(status));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(key + " ", 0) == 0) return line.substr(line.find_first_not_of(' ', key.size()));
  }
  return "no such line";
}

size_t widest_line(const std::string& text) {
  std::istringstream lines(text);
  size_t widest = 0;
  for (std::string line; std::getline(lines, line);) widest = std::max(widest, line.size());
  return widest;
}

TEST_CASE("a status tells of the job, of every rank's memory and of every process") {
  CHECK(shown(sample_status()) ==
        R"(job        running update, in phase transfer for 1.50 s
commands   7 done, 1 of them failed; 2 waiting
started    2026-05-04T03:02:01Z, build 0.1.0+g0123456789ab
model      qwen3-4b, on cuda
trainer    megatron:tp=1
inference  sglang:tp=1
content    version 6, committed
memory     64.0 GB at the peak of the fullest device, 56.0 GB of pinned host
           memory
leak       none: the devices hold what the books say
gpus       NVIDIA H100
host       alpha: 55.0 GB pinned by 2 ranks; cgroup 61.2 GB of 128 GB; memlock
           55.0 GB of 64.0 GB a process
last error 2026-05-04T03:03:00Z, exit code 4
           rank 1 (inference, host alpha, gpu 0): in phase transfer: weights are
           not sent after 30.0 s
           hint: see what that process does

trainer
rank  host   gpu  engine    weights             optimizer
   0  alpha    0  stand-in  offloaded  8.00 GB  offloading  48.0 GB

inference
rank  host   gpu  engine    weights            kv_cache
   1  alpha    0  stand-in  resident  8.04 GB  discarded  512 MB

processes
rank   pid  steps  process   pinned  staging  gpu free       of
   0  4711      6  1.20 GB  55.0 GB  33.6 MB   20.0 GB  80.0 GB
   1  4712      0  1.20 GB      0 B  33.6 MB   20.0 GB  80.0 GB
)");
}

TEST_CASE("a job that begins is shown with what is known of it") {
  JobStatus status;
  status.phase = "loading";
  status.since_s = 75;
  CHECK(shown(status) == R"(job        starting, in phase loading for 75.0 s
commands   0 done, 0 of them failed; 0 waiting
content    empty
memory     0 B of pinned host memory
leak       unknown: not compared with the books yet
last error none
)");
  status.rank_infos = {{0, "trainer", "alpha", "0 NVIDIA H100"}};
  CHECK(shown(status).find(R"(
trainer
rank  host   gpu  engine
   0  alpha    0  -
)") != std::string::npos);
}

TEST_CASE("of a job that waits for engines it is said which ranks do") {
  JobStatus status;
  status.waits = {{0, "trainer", "alpha", "an engine to attach"},
                  {1, "inference", "alpha", "vllm 0.32.0 (pid 4711) to declare its tensors"}};
  CHECK(shown(status).find(R"(
waits      rank 0 (trainer, host alpha): for an engine to attach
           rank 1 (inference, host alpha): for vllm 0.32.0 (pid 4711) to declare
           its tensors
commands )") != std::string::npos);
  for (int rank = 2; rank < 9; ++rank) {
    status.waits.push_back({rank, "trainer", "beta", "an engine to attach"});
  }
  CHECK(shown(status).find(R"(
           rank 7 (trainer, host beta): for an engine to attach
           and 1 more rank (--json names all)
commands )") != std::string::npos);
}

TEST_CASE("content that may not be served is called so, with what was good last") {
  auto status = sample_status();
  status.content = ContentState::kPoisoned;
  CHECK(shown_line(status, "content").rfind("poisoned: inference weights may be mixed", 0) == 0);
  CHECK(shown(status).find("version 6 was the last") != std::string::npos);
  status.content = ContentState::kEmpty;
  CHECK(shown_line(status, "content") == "empty; version 6 was the last committed");
  status.committed_version.reset();
  CHECK(shown_line(status, "content") == "empty");
}

TEST_CASE("a leak is one beyond what the driver may take for itself") {
  auto status = sample_status();
  status.memory.leak_tolerance_bytes = 32'000'000;
  status.memory.leaked_bytes = 32'000'000;
  CHECK(shown_line(status, "leak").rfind("none: ", 0) == 0);
  CHECK(shown_line(status, "leak").find("within 32.0 MB") != std::string::npos);
  status.memory.leaked_bytes = 32'000'001;
  CHECK(shown_line(status, "leak").rfind("32.0 MB leaked: ", 0) == 0);
  status.ranks[0].leaked_bytes = 32'000'000;
  status.ranks[1].leaked_bytes = 32'000'001;
  CHECK(shown_line(status, "leak") ==
        "32.0 MB leaked: more than the books say, in rank 1 (pid 4712)");
  status.memory.leaked_bytes = -5;
  CHECK(shown_line(status, "leak") == "none: the devices hold what the books say");
}

TEST_CASE("of the ranks of a host the one with the least room counts") {
  auto status = sample_status();
  status.ranks[0].host_limit_bytes.reset();
  status.ranks[0].lock_limit_bytes.reset();
  status.ranks[1].host_limit_bytes = 62'000'000'000;
  status.ranks[1].lock_limit_bytes = 60'000'000'000;
  CHECK(shown_line(status, "host") ==
        "alpha: 55.0 GB pinned by 2 ranks; cgroup 61.2 GB of 62.0 GB; memlock");
  status.ranks[1].host_limit_bytes.reset();
  status.ranks[1].lock_limit_bytes.reset();
  CHECK(shown_line(status, "host") ==
        "alpha: 55.0 GB pinned by 2 ranks; no cgroup limit; no memlock limit");
  status.ranks[1].lock_limit_bytes = 8'000'000;
  status.backend = "host";
  CHECK(
      shown(status).find("no cgroup limit; memlock 8.00 MB a\n           process, not needed\n") !=
      std::string::npos);
  status.rank_infos[1].host = "beta";
  CHECK(shown_line(status, "host").rfind("alpha: 55.0 GB pinned by 1 rank;", 0) == 0);
  CHECK(shown(status).find("host       beta: 0 B pinned by 1 rank;") != std::string::npos);
}

TEST_CASE("a status fits 80 columns, whatever names are in it") {
  auto status = sample_status();
  const std::string longest(70, 'h');
  for (auto& info : status.rank_infos) {
    info.host = longest + std::to_string(info.rank);
    info.gpu = "15 NVIDIA GH200 480GB of a Very Long Marketing Name That Goes On";
  }
  for (auto& rank : status.ranks) {
    rank.engine = fixed_text<32>("an-engine-with-a-long-name-0");
    rank.memory[0]->state = RegionState::kOffloading;
    rank.pid = 4'194'303;
    rank.resident_set_bytes = 999'000'000'000;
    rank.steps = 1'000'000;
  }
  status.ranks[0].memory[1]->bytes = 999'900'000'000;
  std::string words;
  for (int i = 0; i < 60; ++i) words += "some words ";
  status.last_error = Error(ExitCode::kRuntime, words, words);
  const auto text = shown(status);
  CHECK(widest_line(text) <= 80);
  CHECK(text.find("hhhhhh..hhhhh0") != std::string::npos);
  CHECK(text.find("hhhhhh..hhhhh1") != std::string::npos);
}

TEST_CASE("a status fits narrow and wide terminals; a wide one shows names whole") {
  auto status = sample_status();
  const std::string host = "node-17.rack-4.cluster.example.org";
  for (auto& info : status.rank_infos) info.host = host;
  const auto json = render_status_json(status);
  for (const size_t width : {size_t{60}, size_t{80}, size_t{120}}) {
    CAPTURE(width);
    CHECK(widest_line(render_status(json, {.width = width})) <= width);
  }
  CHECK(render_status(json, {.width = 120}).find("   0  " + host + "    0  stand-in  offloaded") !=
        std::string::npos);
}

TEST_CASE("what another build does not say is unknown, and what is no status is an error") {
  CHECK(render_status(R"({"activity": "idle", "ranks": [{"rank": 0}, 7], "memory": 3})", {})
            .rfind("job        idle\n", 0) == 0);
  CHECK_NOTHROW((void)render_status("{}", {}));
  for (const char* text : {"", "[]", "nothing", "{"}) {
    CHECK_THROWS_AS((void)render_status(text, {}), Error);
  }
}

TEST_CASE("escape codes are there with colour and only then") {
  auto status = sample_status();
  status.content = ContentState::kPoisoned;
  const auto json = render_status_json(status);
  CHECK(render_status(json, {}).find('\033') == std::string::npos);
  CHECK(render_status(json, {.color = true}).find("\033[31mpoisoned\033[0m") != std::string::npos);
}

TEST_CASE("time alone is no change of a status") {
  const auto status = sample_status();
  const auto lasting = lasting_status(render_status_json(status));
  auto later = status;
  later.since_s += 1;
  later.ranks[0].resident_set_bytes += 4096;
  later.ranks[1].device_free_bytes -= 1;
  later.ranks[1].host_used_bytes = 1;
  CHECK(lasting_status(render_status_json(later)) == lasting);
  const auto changes = [&](const auto& change) {
    auto other = status;
    change(other);
    CHECK(lasting_status(render_status_json(other)) != lasting);
  };
  changes([](JobStatus& other) { other.phase = "commit"; });
  changes([](JobStatus& other) { other.queued = 0; });
  changes([](JobStatus& other) { other.content = ContentState::kPoisoned; });
  changes([](JobStatus& other) { other.ranks[0].memory[0]->state = RegionState::kResident; });
  changes([](JobStatus& other) { other.last_error.reset(); });
}

}  // namespace
}  // namespace awex
