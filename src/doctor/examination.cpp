#include "doctor/examination.hpp"

#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "base/checked.hpp"
#include "base/launch.hpp"
#include "cycle/common_options.hpp"
#include "cycle/world.hpp"
#include "doctor/gpu_checks.hpp"
#include "doctor/host_memory_check.hpp"
#include "doctor/job_checks.hpp"
#include "doctor/link_speed.hpp"
#include "doctor/machine_checks.hpp"
#include "doctor/sharing.hpp"
#include "doctor/watched_check.hpp"
#include "doctor/wire_examination.hpp"
#include "memory/gpu_facts.hpp"

namespace awex {
namespace {

Finding untried(const char* why) { return waived(fmt::format("not tried: {}", why)); }

/// What can be found without other ranks. `backend` is the one whose needs count.
void examine_machine(Findings& findings, BackendKind backend, uint64_t node_ranks,
                     const CheckTime& time, WaitMonitor& monitor) {
  const auto look = [&](Check check, std::function<Finding()> work) {
    findings.at(static_cast<size_t>(check)) = watch_check(std::move(work), time, monitor);
  };
  look(Check::kMemfd, check_memfd);
  look(Check::kLockedMemory, [backend] { return check_locked_memory(backend); });
  look(Check::kOpenFiles, check_open_files);
  look(Check::kDevShm, [backend, node_ranks] { return check_dev_shm(backend, node_ranks); });
  look(Check::kHugePages, [] { return check_huge_pages(); });
  look(Check::kPtraceScope, [] { return check_ptrace_scope(); });
}

/// The driver's answers, and how many GPUs it shows.
struct DriverAnswer {
  Finding driver;
  Finding grant;
  int gpus = 0;
  bool answers = false;
};

DriverAnswer ask_driver(std::optional<BackendKind> requested, const CheckTime& time,
                        WaitMonitor& monitor) {
  DriverAnswer answer;
  if (requested == BackendKind::kHost) {
    answer.driver = answer.grant = waived_without_gpu(requested);
    answer.answers = true;
    return answer;
  }
  const auto counted = std::make_shared<int>(-1);
  answer.driver = watch_check(
      [requested, counted] {
        auto finding = check_driver(requested, cuda_versions());
        *counted = cuda_device_count();
        return finding;
      },
      time, monitor);
  answer.answers = *counted >= 0;
  answer.gpus = std::max(0, *counted);
  if (!answer.answers) {
    answer.grant = untried("the driver does not answer");
  } else {
    answer.grant = check_grant(requested, granted_gpus(), answer.gpus,
                               answer.gpus == 0 ? why_no_cuda_device() : "");
  }
  return answer;
}

/// The examination of a job, step by step; every step is collective and has the same course on
/// every rank, whatever one finds.
class Examination {
 public:
  Examination(Job& job, const DoctorOptions& options) : job_(job), options_(options) {}

  DoctorReport run() {
    auto report = begin_doctor_report();
    look_at_job();
    choose();
    look_at_machine();
    place_ranks();
    share();
    look_at_links();
    gather(report);
    return report;
  }

 private:
  Finding& at(Check check) { return findings_.at(static_cast<size_t>(check)); }
  [[nodiscard]] size_t me() const { return static_cast<size_t>(job_.rank()); }
  [[nodiscard]] bool is_alone() const { return job_.size() == 1; }
  /// The backend whose needs count, also where it was asked for in vain.
  [[nodiscard]] BackendKind needed() const {
    return options_.backend.value_or(backend_.value_or(BackendKind::kHost));
  }

  /// Several steps come between two calls that wait for all: they must end before those give up.
  [[nodiscard]] CheckTime time_of_checks() const {
    return {options_.timeout / 2, options_.timeout / 4};
  }
  [[nodiscard]] Seconds longest_try() const { return std::min(Seconds(3), options_.timeout / 8); }

  /// Does what all ranks do alike. Returns the error that all have agreed on.
  template <class Work>
  [[nodiscard]] std::optional<Error> attempt(const char* phase, const Work& work) {
    job_.set_phase(phase);
    try {
      work();
    } catch (const Error& error) {
      if (!job_.failure_is_agreed()) throw;
      return error;
    }
    return std::nullopt;
  }

  void look_at_job() {
    Request common;
    common.job.backend = options_.backend;
    common.job.share_gpu = options_.share_gpu;
    common.job.timeout = options_.timeout;
    job_.set_phase("launch");
    check_common_options(job_, common);
    at(Check::kLauncher) = check_launcher(this_launch(), job_.size());
    at(Check::kMpi) = check_mpi();
    places_ = job_.all_gather_value(read_place(job_.node()), "the places of all ranks");
    at(Check::kClock) = check_clock(places_, me());
  }

  void choose() {
    const auto answer = ask_driver(options_.backend, time_of_checks(), job_);
    at(Check::kDriver) = answer.driver;
    at(Check::kGpuGrant) = answer.grant;
    struct Told {
      int32_t answers;
      int32_t gpus;
    };
    const auto told =
        job_.all_gather_value(Told{answer.answers ? 1 : 0, answer.gpus}, "the answers of drivers");
    const auto silent =
        std::find_if(told.begin(), told.end(), [](const Told& one) { return one.answers == 0; });
    if (silent != told.end()) {
      at(Check::kBackend) = failed(
          fmt::format("unknown: the driver of rank {} does not answer", silent - told.begin()),
          "nvidia-smi tells the driver's state; --backend host does without it");
    } else if (const auto error =
                   attempt("backend", [&] { backend_ = choose_backend(job_, options_.backend); })) {
      at(Check::kBackend) = failed(*error);
    } else {
      at(Check::kBackend) = passed(backend_name(*backend_));
    }
    at(Check::kNamespaces) = check_namespaces(places_, me(), needed());
  }

  void look_at_machine() {
    const auto node_ranks = static_cast<uint64_t>(
        std::count_if(places_.begin(), places_.end(),
                      [&](const Place& place) { return place.node == job_.node(); }));
    examine_machine(findings_, needed(), node_ranks, time_of_checks(), job_);
    const auto claims = job_.all_gather_value(claim_least(job_.node()), "limits of host memory");
    at(Check::kHostMemory) = judge_host_memory(claims, job_.node());
    judge_binding(host_share(job_));
  }

  void judge_binding(const HostShare& share) {
    threads_ = share.threads;
    const auto numa = describe_numa_nodes();
    const auto nodes = numa.empty() ? "" : ", " + numa;
    const bool one_core = std::find(share.one_core_ranks.begin(), share.one_core_ranks.end(),
                                    job_.rank()) != share.one_core_ranks.end();
    at(Check::kBinding) =
        one_core ? waived("bound to one core of several" + nodes + ": copies have one thread",
                          fmt::format("give it more: {}", unbinding_options(this_launch())))
                 : passed(fmt::format("{} thread{} a rank{}", share.threads,
                                      share.threads == 1 ? "" : "s", nodes));
    at(Check::kBinding) =
        with_value(at(Check::kBinding), "threads", static_cast<double>(share.threads));
  }

  /// Roles, devices and pairs, as an update settles them.
  void place_ranks() {
    if (is_alone()) {
      at(Check::kRoles) =
          this_launch().launcher == Launcher::kNone
              ? untried("started alone")
              : failed("one rank, which has no partner",
                       fmt::format("{} awex-colocate doctor", start_command(this_launch(), 2)));
      open_alone();
      at(Check::kPairing) = untried("there is one rank");
      return;
    }
    std::optional<RoleMap> roles;
    const auto error = attempt("roles", [&] { roles = assign_roles(job_, options_.role); });
    if (error) {
      at(Check::kRoles) = failed(*error);
    } else {
      roles_ = roles->role;
      at(Check::kRoles) = passed(fmt::format("{} trainer and {} inference rank{}", roles->per_role,
                                             roles->per_role, roles->per_role == 1 ? "" : "s"));
    }
    if (!roles || !backend_ || at(Check::kNamespaces).verdict == Verdict::kFailed) {
      const char* why = !roles      ? "roles failed"
                        : !backend_ ? "backend failed"
                                    : "namespaces failed";
      at(Check::kDevice) = backend_ == BackendKind::kHost ? open_stand_in() : untried(why);
      at(Check::kPairing) = untried(why);
      return;
    }
    pair(*roles);
  }

  void pair(const RoleMap& roles) {
    at(Check::kDevice) = open_own([&] { return open_device(job_, roles, *backend_, threads_); });
    const auto opened = job_.all_gather_value(device_ ? 1 : 0, "whose devices can be opened");
    if (std::count(opened.begin(), opened.end(), 0) > 0) {
      at(Check::kPairing) = untried("a rank cannot open its device");
      return;
    }
    std::optional<DeviceMap> devices;
    const auto error = attempt(
        "pairing", [&] { devices = pair_devices(job_, roles, *device_, options_.share_gpu); });
    if (error) {
      at(Check::kPairing) = failed(*error);
      return;
    }
    partner_ = devices->partner;
    gpus_ = devices->gpus;
    const int pairs = job_.size() / 2;
    const auto where = *backend_ == BackendKind::kHost
                           ? std::string("host memory")
                           : fmt::format("{} GPU{}", gpus_, gpus_ == 1 ? "" : "s");
    at(Check::kPairing) =
        passed(fmt::format("{} pair{} of ranks on {}", pairs, pairs == 1 ? "" : "s", where));
  }

  /// Whether a rank that has no device stands in: then no two GPUs are mistaken for one.
  template <class Open>
  [[nodiscard]] Finding open_own(const Open& open) {
    try {
      device_ = open();
      if (device_->kind() == BackendKind::kHost) return passed("host memory stands for a GPU");
      return check_capability(visible_gpus().at(static_cast<size_t>(device_->identity().index)));
    } catch (const Error& error) {
      return failed(error);
    }
  }

  [[nodiscard]] Finding open_stand_in() {
    return open_own([&] { return make_host_device(job_.node_rank(), threads_); });
  }

  /// Without partners every GPU that is seen is looked at.
  void open_alone() {
    if (!backend_ || *backend_ == BackendKind::kHost) {
      at(Check::kDevice) = backend_ ? open_stand_in() : untried("backend failed");
      return;
    }
    for (int index = cuda_device_count() - 1; index >= 0; --index) {
      device_.reset();
      at(Check::kDevice) = open_own([&] { return make_cuda_device(index, threads_); });
      if (at(Check::kDevice).verdict == Verdict::kFailed) return;
    }
  }

  void share() {
    job_.set_phase("sharing");
    SharingPartners partners;
    partners.giver = partner_ >= 0 ? partner_ : next_to_try(places_, me());
    const auto givers = job_.all_gather_value(partners.giver, "who tries whose memory");
    const auto taker = std::find(givers.begin(), givers.end(), job_.rank());
    if (taker != givers.end()) partners.taker = narrow<int>(taker - givers.begin());
    // Where GPUs are not paired, host memory shows whether processes can share any.
    const bool paired = partner_ >= 0 || is_alone();
    std::unique_ptr<Device> stand_in;
    if (!device_ || !paired) stand_in = make_host_device(job_.node_rank(), threads_);
    auto& device = stand_in ? *stand_in : *device_;
    auto found = try_sharing(job_, device, partners, longest_try());
    at(Check::kPidfd) = std::move(found.pidfd);
    at(Check::kSocket) = std::move(found.socket);
    at(Check::kSharedMemory) = std::move(found.memory);
    at(Check::kLegacyIpc) = needed() == BackendKind::kHost ? waived_without_gpu(options_.backend)
                            : stand_in                     ? untried("no GPU is paired")
                                                           : std::move(found.legacy_ipc);
  }

  void look_at_links() {
    const auto time = time_of_checks();
    at(Check::kNccl) = needed() == BackendKind::kHost ? waived_without_gpu(options_.backend)
                                                      : watch_check(check_nccl, time, job_);
    if (backend_ != BackendKind::kCuda) {
      at(Check::kPeerAccess) = waived_without_gpu(options_.backend);
    } else if (job_.peers().empty() || partner_ < 0) {
      at(Check::kPeerAccess) = untried("no GPU is paired");
    } else {
      at(Check::kPeerAccess) = watch_check(
          [peers = job_.peers(), rank = me()] { return check_peer_access(peers, rank); }, time,
          job_);
    }
    measure();
  }

  /// Ranks that share links measure one after the other; one speaks for its partner, on host
  /// memory for its host.
  void measure() {
    job_.set_phase("link speeds");
    const bool on_gpu = device_ && device_->kind() == BackendKind::kCuda;
    const bool measures =
        device_ && (on_gpu ? partner_ < 0 || job_.rank() < partner_ : job_.node_rank() == 0);
    auto turns = static_cast<uint64_t>(job_.node_rank()) + 1;
    job_.all_reduce_max({&turns, 1}, "how many take turns");
    MeasuredSpeed mine;
    for (uint64_t turn = 0; turn < (on_gpu || backend_ == BackendKind::kCuda ? turns : 1); ++turn) {
      if (measures && turn == static_cast<uint64_t>(job_.node_rank())) {
        mine = measure_speed(*device_, options_.timeout / 4, job_);
      }
      (void)job_.all_gather_value(1, "the turns of measuring");
    }
    const auto all = job_.all_gather_value(mine, "the speeds of links");
    const auto has = [&](size_t rank) {
      return all[rank].done != 0 || all[rank].failure.front() != '\0';
    };
    size_t speaker = me();
    if (!has(speaker) && partner_ >= 0 && on_gpu) speaker = static_cast<size_t>(partner_);
    for (size_t rank = 0; !has(speaker) && !on_gpu && rank < all.size(); ++rank) {
      if (places_[rank].node == job_.node() && has(rank)) speaker = rank;
    }
    at(Check::kSpeed) =
        has(speaker) ? judge_speed(all[speaker], on_gpu ? BackendKind::kCuda : BackendKind::kHost)
                     : untried("no device could be opened");
  }

  void gather(DoctorReport& report) {
    WireExamination mine;
    mine.pid = ::getpid();
    mine.partner = partner_;
    if (device_ && device_->kind() == BackendKind::kCuda) {
      const auto& identity = device_->identity();
      mine.has_gpu = 1;
      mine.gpu_index = identity.index;
      mine.gpu_uuid = identity.uuid;
      mine.gpu_name = fixed_text<96>(identity.name);
    }
    for (size_t i = 0; i < kChecks; ++i) mine.findings.at(i) = to_wire(findings_.at(i));
    job_.set_phase("report");
    const auto all = job_.all_gather_value(mine, "what all ranks have found");
    for (size_t rank = 0; rank < all.size(); ++rank) {
      const auto& wire = all[rank];
      RankExamination one;
      one.rank = narrow<int>(rank);
      one.host = job_.node_of(one.rank).name();
      one.pid = wire.pid;
      if (!roles_.empty()) one.role = roles_[rank];
      if (wire.partner >= 0) one.partner = wire.partner;
      if (wire.has_gpu != 0) one.gpu = {wire.gpu_uuid, wire.gpu_index, text_of(wire.gpu_name)};
      for (size_t i = 0; i < kChecks; ++i) one.findings.at(i) = from_wire(wire.findings.at(i));
      report.ranks.push_back(std::move(one));
    }
    report.backend = backend_;
    report.nodes = job_.nodes();
    report.gpus = gpus_;
    report.finished = true;
  }

  Job& job_;
  const DoctorOptions& options_;
  Findings findings_;
  std::vector<Place> places_;
  std::vector<Role> roles_;
  std::optional<BackendKind> backend_;
  size_t threads_ = 1;
  std::unique_ptr<Device> device_;
  int partner_ = -1;
  int gpus_ = 0;
};

}  // namespace

ExitCode DoctorReport::exit_code() const {
  if (error) return error->code();
  if (!finished) return ExitCode::kRuntime;
  for (const auto& rank : ranks) {
    for (const auto& finding : rank.findings) {
      if (finding.verdict == Verdict::kFailed) return ExitCode::kRuntime;
    }
  }
  return ExitCode::kOk;
}

DoctorReport begin_doctor_report() {
  DoctorReport report;
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  std::array<char, 32> text{};
  if (std::strftime(text.data(), text.size(), "%FT%TZ", &parts) > 0) {
    report.started_at = text.data();
  }
  return report;
}

DoctorReport examine(Job& job, const DoctorOptions& options) {
  return Examination(job, options).run();
}

DoctorReport examine_without_job(const DoctorOptions& options, const Error& why) {
  auto report = begin_doctor_report();
  RankExamination here;
  here.findings.fill(untried("these processes are no job of MPI"));
  const auto at = [&](Check check) -> Finding& {
    return here.findings.at(static_cast<size_t>(check));
  };
  at(Check::kLauncher) = failed(why);
  NoMonitor nobody;
  const CheckTime time(options.timeout / 2, options.timeout / 4);
  const auto answer = ask_driver(options.backend, time, nobody);
  at(Check::kDriver) = answer.driver;
  at(Check::kGpuGrant) = answer.grant;
  const auto backend =
      options.backend.value_or(answer.gpus > 0 ? BackendKind::kCuda : BackendKind::kHost);
  const auto node = read_node_identity();
  examine_machine(here.findings, backend, 1, time, nobody);
  const auto claim = claim_least(node);
  at(Check::kHostMemory) = judge_host_memory({&claim, 1}, node);
  here.rank = this_launch().rank.value_or(0);
  here.host = node.name();
  here.pid = ::getpid();
  report.nodes = 1;
  report.ranks.push_back(std::move(here));
  report.finished = true;
  return report;
}

}  // namespace awex
