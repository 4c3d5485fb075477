#include "attach/library/find_rank.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <string>
#include <thread>

#include "attach/fake_rank.hpp"
#include "support/failure_of.hpp"

namespace {

using namespace awex;
using namespace awex::attach;
using test::FakeRank;
using test::TemporaryDirectory;

RankWanted wanted(const TemporaryDirectory& job, Role role, int device = 0) {
  RankWanted rank;
  rank.job = job.path().string();
  rank.role = role;
  rank.device = device;
  return rank;
}

std::string failure(const RankWanted& rank, ExitCode code = ExitCode::kDeadline) {
  const auto error =
      test::failure_of([&] { static_cast<void>(find_rank(rank, Deadline(Seconds(0.05)))); });
  REQUIRE(error);
  CHECK(error->code() == code);
  return std::string(error->what()) + "\n" + error->hint();
}

void check_says(const std::string& text, const std::string& part) {
  CAPTURE(text);
  CHECK(text.find(part) != std::string::npos);
}

TEST_CASE("a GPU's UUID is read as people write it") {
  const auto digits = parse_gpu_uuid("8f3c0123456789abcdef00112233445A");
  CHECK(digits[0] == 0x8f);
  CHECK(digits[15] == 0x5a);
  CHECK(parse_gpu_uuid("GPU-8f3c0123-4567-89ab-cdef-00112233445a") == digits);
  CHECK(parse_gpu_uuid("MIG-8F3C0123-4567-89ab-cdef-00112233445a") == digits);
  for (const char* text : {"", "GPU-", "GPU-8f3c", "8f3c0123456789abcdef00112233445g",
                           "8f3c0123456789abcdef00112233445a0", "gpu-0"}) {
    CHECK(test::failure_of([&] { static_cast<void>(parse_gpu_uuid(text)); }));
  }
}

TEST_CASE("a rank is found by role and device, also one that comes later") {
  const TemporaryDirectory job;
  FakeRank trainer(job.path(), Role::kTrainer, 0);
  FakeRank second(job.path(), Role::kTrainer, 1);
  FakeRank inference(job.path(), Role::kInference, 1);
  write_engine_record(job.path().string(), trainer.record);
  write_engine_record(job.path().string(), inference.record);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    write_engine_record(job.path().string(), second.record);
  });
  const auto found = find_rank(wanted(job, Role::kTrainer, 1), Deadline(Seconds(30)));
  later.join();
  CHECK(found.record.socket == second.record.socket);
  CHECK(found.socket.valid());
}

TEST_CASE("a GPU is found by its UUID, whatever its number is") {
  const TemporaryDirectory job;
  FakeRank first(job.path(), Role::kTrainer, 0);
  FakeRank second(job.path(), Role::kTrainer, 1);
  for (auto* rank : {&first, &second}) {
    rank->record.backend = "cuda";
    rank->record.uuid.fill(static_cast<uint8_t>(0x10 + rank->record.device));
    write_engine_record(job.path().string(), rank->record);
  }
  auto rank = wanted(job, Role::kTrainer, 0);
  rank.gpu.emplace().fill(0x11);
  CHECK(find_rank(rank, Deadline(Seconds(30))).record.socket == second.record.socket);
  rank.gpu->fill(0x12);
  const auto text = failure(rank);
  check_says(text, "for trainer on GPU 12121212121212121212121212121212 after 50.0 ms");
  check_says(text, "rank 3 waits for trainer on GPU 10101010101010101010101010101010");
  check_says(text, "rank 3 waits for trainer on GPU 11111111111111111111111111111111");
  check_says(failure(wanted(job, Role::kTrainer)), "and no GPU was named");
}

TEST_CASE("who finds no rank is told what is there") {
  const TemporaryDirectory job;
  auto nowhere = wanted(job, Role::kTrainer);
  nowhere.job += "/nowhere";
  check_says(failure(nowhere), "there is no such directory");
  const auto mine = wanted(job, Role::kTrainer);
  check_says(failure(mine), "no job has begun there");
  check_says(failure(mine), "start the job first");
  test::write_file(job.path() / "job.json", R"({"ended_at":null,"end":null})");
  check_says(failure(mine), "no rank there waits for an engine");
  test::write_file(job.path() / "job.json",
                   R"({"ended_at":"2026-11-27T10:00:00Z","end":"stopped by a client"})");
  check_says(failure(mine), "the job there ended 2026-11-27T10:00:00Z: stopped by a client");

  FakeRank rank(job.path(), Role::kInference, 2);
  const auto good = rank.record;
  const auto put = [&] {
    write_engine_record(job.path().string(), rank.record);
    return failure(mine);
  };
  check_says(put(), "rank 3 waits for inference number 2");
  check_says(put(), "attach to a rank that waits, by its role and device");
  remove_engine_record(job.path().string(), rank.record);
  rank.record.role = Role::kTrainer;
  rank.record.device = 0;
  rank.record.host = "elsewhere";
  check_says(put(), "rank 3 is on host elsewhere, this engine on host " + good.host);
  remove_engine_record(job.path().string(), rank.record);
  rank.record.host = good.host;
  rank.record.boot_id = "another start of the kernel";
  check_says(put(), "rank 3 is on host");
  rank.record.boot_id = good.boot_id;
  rank.record.pid_namespace = good.pid_namespace + 1;
  check_says(put(), "in another PID namespace (container)");
  rank.record.pid_namespace = good.pid_namespace;
  rank.record.socket += ".gone";
  check_says(put(), "rank 3 (pid " + std::to_string(good.pid) + ") does not listen");
  rank.record.socket = std::string(200, 'x');
  write_engine_record(job.path().string(), rank.record);
  check_says(failure(mine, ExitCode::kRequest), "names no socket");
  rank.record.socket = good.socket;
  write_engine_record(job.path().string(), rank.record);
  auto gpu = mine;
  gpu.gpu.emplace();
  check_says(failure(gpu), "rank 3 runs on the host backend");
  test::write_file(job.path() / "engines" / "x.json", "{");
  check_says(failure(mine, ExitCode::kRequest), "x.json");
}

}  // namespace
