// An update that one rank disturbs on purpose:
//   disturbed_update FAULT RANK PHASE ROLE TAG TIMEOUT_S HOW [BACKEND TRAINER INFERENCE]
// When RANK begins the phase (PHASE, ROLE, TAG) of version 1 it does FAULT: none, kill, stop,
// throw, or damage, which flips one bit of the memory that the phase works on: of the host backup
// where that holds the bytes, else of the mapped memory. With the fault drift several trainers
// alter the same element of theirs, each by a number of its own: RANK is "RANK:STEPS,RANK:STEPS,…".
// disturbed_update_test.py says what must become of it. HOW is empty, full (--verify full), warm
// (--warm-host-memory), peer (--exchange peer) or share (--share-gpu). Damage needs memory that the
// process can write: BACKEND host, which is the default.
#include <mpi.h>

#include <csignal>
#include <cstdio>
#include <map>
#include <sstream>
#include <string>

#include "base/log.hpp"
#include "cycle/session.hpp"
#include "support/flipped_bit.hpp"

namespace {

struct Fault {
  std::string kind;
  std::map<int, int> steps;  ///< By rank that disturbs; what it adds, with drift.
  std::string phase;
  std::string role;
  std::string tag;
};

/// "1:3,2:-3", or "1".
std::map<int, int> parse_steps(const std::string& text) {
  std::map<int, int> steps;
  std::istringstream list(text);
  for (std::string item; std::getline(list, item, ',');) {
    const auto colon = item.find(':');
    steps[std::stoi(item)] = colon == std::string::npos ? 0 : std::stoi(item.substr(colon + 1));
  }
  return steps;
}

/// Adds to the bits of the bf16 element in the middle of the region's first chunk.
void drift(awex::Region& region, int steps) {
  const uint64_t middle = region.range().chunking().used_bytes(0) / 2 / sizeof(uint16_t);
  auto& bits = reinterpret_cast<uint16_t*>(region.data())[middle];
  bits = static_cast<uint16_t>(bits + steps);
}

class Disturber final : public awex::CycleObserver {
 public:
  Disturber(Fault fault, const awex::Job& job) : fault_(std::move(fault)), job_(job) {}

  void phase_started(const awex::PhaseEvent& event) override {
    const bool is_now = event.version == 1 && event.phase == fault_.phase &&
                        event.role == fault_.role && event.tag == fault_.tag;
    if (is_now && fault_.steps.contains(job_.rank())) {
      std::printf("phase %s %s %s\n", event.phase.c_str(), event.role.c_str(), event.tag.c_str());
      std::fflush(stdout);
      disturb(event);
    }
    // Trainers go their own way meanwhile: the transfer waits for what one of them damages then.
    if (trainer_damages_transfer() && event.phase == "transfer" && event.takes_part) {
      for (const auto& [rank, steps] : fault_.steps) {
        MPI_Recv(nullptr, 0, MPI_BYTE, rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      }
    }
  }
  void phase_finished(const awex::PhaseEvent& /*event*/, double /*seconds*/,
                      uint64_t /*bytes*/) override {}

 private:
  void disturb(const awex::PhaseEvent& event) const {
    if (fault_.kind == "kill") std::raise(SIGKILL);
    if (fault_.kind == "stop") std::raise(SIGSTOP);
    if (fault_.kind == "throw") throw awex::runtime_error("a fault on purpose");
    if (fault_.kind == "damage") awex::test::flip_bit(*event.region);
    if (fault_.kind == "drift") drift(*event.region, fault_.steps.at(job_.rank()));
    if (!trainer_damages_transfer()) return;
    for (int rank = trainers(); rank < job_.size(); ++rank) {
      MPI_Send(nullptr, 0, MPI_BYTE, rank, 0, MPI_COMM_WORLD);
    }
  }
  /// The lower half of the ranks.
  [[nodiscard]] int trainers() const { return job_.size() / 2; }
  [[nodiscard]] bool trainer_damages_transfer() const {
    const bool alters = fault_.kind == "damage" || fault_.kind == "drift";
    return alters && fault_.phase == "transfer" && fault_.steps.begin()->first < trainers();
  }

  Fault fault_;
  const awex::Job& job_;
};

awex::Request options_from(int argc, char** argv) {
  awex::Request options;
  options.job.timeout = awex::Seconds(std::stod(argv[6]));
  const std::string how = argv[7];
  options.command.verify = how == "full" ? awex::Verify::kFull : awex::Verify::kDigest;
  options.job.warm_host_memory = how == "warm";
  options.job.share_gpu = how == "share";
  if (how == "peer") options.job.exchange = awex::ExchangeKind::kPeer;
  options.job.model = "preset:tiny-dense";
  const bool is_default = argc == 8;
  options.job.trainer = is_default ? "megatron:tp=2" : argv[9];
  options.job.inference = is_default ? "sglang:tp=1" : argv[10];
  const bool is_cuda = !is_default && std::string(argv[8]) == "cuda";
  options.job.backend = is_cuda ? awex::BackendKind::kCuda : awex::BackendKind::kHost;
  options.job.kv_cache_bytes = 1 << 20;
  options.command.versions = 2;
  options.job.measure_limits = false;
  return options;
}

/// "none", or the tensors that differ of all that were compared: "1/12".
std::string digest_of(const awex::Report& report) {
  if (report.versions.empty() || !report.versions.back().digest) return "none";
  const auto& digest = *report.versions.back().digest;
  return fmt::format("{}/{}", digest.mismatched, digest.tensors);
}

/// Whose the error is, "3 inference gpu 1", or "nobody".
std::string place_of(const awex::ErrorContext& context) {
  const bool is_nobody =
      !context.rank && context.role.empty() && context.gpu.empty() && context.host.empty();
  if (is_nobody) return "nobody";
  return fmt::format("{} {} gpu {}", context.rank.value_or(-1), context.role, context.gpu);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8 && argc != 11) {
    std::fprintf(stderr,
                 "usage: %s FAULT RANK PHASE ROLE TAG TIMEOUT_S HOW [BACKEND TRAINER INFERENCE]\n",
                 argv[0]);
    return 2;
  }
  const auto options = options_from(argc, argv);
  // Many such jobs start at once, on machines with fewer cores than ranks.
  const awex::Job::Start start{.allowance = awex::Seconds(20), .launched_rank = {}, .report = {}};
  awex::Job job(&argc, &argv, options.job.timeout, start);
  Disturber disturber({argv[1], parse_steps(argv[2]), argv[3], argv[4], argv[5]}, job);
  const auto report = awex::run_command(options, job, disturber);
  const bool broken_off = report.error && !job.failure_is_agreed();
  if (broken_off) job.await_turn_to_report(report.error->code());
  if (report.error && job.is_reporter()) {
    awex::log::error(*report.error);
    const auto& context = report.error->context();
    std::printf(
        "reported: code %d of '%s' tensor '%s' phase '%s' poisoned %d committed %d digest %s\n",
        static_cast<int>(report.error->code()), place_of(context).c_str(), context.tensor.c_str(),
        context.phase.c_str(), report.poisoned ? 1 : 0,
        static_cast<int>(report.committed_version.value_or(0)), digest_of(report).c_str());
    std::fflush(stdout);
  }
  if (broken_off) job.abort(report.error->code());
  job.finish();
  return static_cast<int>(report.exit_code());
}
