// A job that one rank harms on purpose: fault_program FAULT RANK PLACE TIMEOUT_S. It walks through
// the places start, gather, reduce, exchange, work, agree and finish; at PLACE, RANK does FAULT. At
// the place recovery, which comes after the next rank has failed, the others then recover, and all
// begin again. The places "in reduce", "in finish" and "in recovery" are in calls of MPI there, to
// which all have come; so is "in late gather", to which rank 0 comes last. At the places rest and
// command it is a resident job, which serves three commands and ends with code 1 when one of them
// failed. faults_test.py says what must become of it. "fault at" and "reported … at" are followed
// by seconds of the clock that all processes of a machine share.
#include <mpi.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <thread>

#include "base/log.hpp"
#include "comm/signals.hpp"
#include "support/mpi_job.hpp"

namespace {

using awex::Job;

struct Plan {
  std::string fault;
  int rank = 0;
  std::string place;
  awex::Seconds timeout{0};
};

double now() { return awex::Seconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// As Slurm does.
void terminate_twice(const Job& job) {
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // until all rest
  for (int time = 0; time < 2; ++time) {
    for (const auto& peer : job.peers()) ::kill(peer.pid, SIGTERM);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

/// Computes for longer than anyone waits, without a message.
void compute_for(awex::Seconds time) {
  for (const awex::Deadline end(time); !end.expired();) {
  }
}

void harm(const Job& job, const Plan& plan) {
  std::printf("fault at %.6f\n", now());
  std::fflush(stdout);
  const auto& fault = plan.fault;
  if (fault == "terminate all") terminate_twice(job);
  if (fault == "ask all") {
    for (const auto& peer : job.peers()) ::kill(peer.pid, SIGUSR1);
  }
  if (fault == "compute") compute_for(plan.timeout + awex::Seconds(1.5));
  if (fault == "sleep") std::this_thread::sleep_for(plan.timeout + awex::Seconds(0.4));
  if (fault == "kill") std::raise(SIGKILL);
  if (fault == "crash") {
    std::signal(SIGSEGV, SIG_DFL);  // sanitizers have a handler of their own
    std::raise(SIGSEGV);
  }
  if (fault == "stop") std::raise(SIGSTOP);
  if (fault == "terminate") std::raise(SIGTERM);
  if (fault == "hang") std::this_thread::sleep_for(std::chrono::hours(1));
  if (fault == "throw") throw awex::runtime_error("a fault on purpose").about_tensor("a.weight");
}

/// Returns whether the fault is here.
bool reach(const Job& job, const Plan& plan, const std::string& place) {
  if (job.rank() != plan.rank || place != plan.place) return false;
  harm(job, plan);
  return true;
}

/// What MPI's calls do first. The call is lost if it returns true.
std::function<bool()> before_call;

template <class Work>
void reach_in(const Job& job, const Plan& plan, const std::string& place, const Work& work) {
  before_call = [&] { return reach(job, plan, place); };
  work();
  before_call = nullptr;
}

/// A request that nothing fulfils.
int begin_nothing(MPI_Request* request) {
  return PMPI_Irecv(nullptr, 0, MPI_BYTE, 0, 0, MPI_COMM_SELF, request);
}

bool is_lost() { return before_call && before_call(); }

/// Lets the test find what MPI leaves behind in shared memory.
void print_shared_files() {
  std::ifstream maps("/proc/self/maps");
  std::set<std::string> files;  // a file may be mapped many times
  for (std::string line; std::getline(maps, line);) {
    const auto at = line.find("/dev/shm/");
    if (at != std::string::npos) files.insert(line.substr(at));
  }
  for (const auto& file : files) std::printf("shm: %s\n", file.c_str());
  std::fflush(stdout);
}

/// To the next rank and from the one before.
void exchange_around(Job& job) {
  const int next = (job.rank() + 1) % job.size();
  const int previous = (job.rank() + job.size() - 1) % job.size();
  std::vector<std::byte> out(1 << 20);
  std::vector<std::byte> in(out.size());
  const awex::Outgoing send{next, out};
  const awex::Incoming receive{previous, in};
  job.exchange({&send, 1}, {&receive, 1}, "the ring");
}

/// Local work that goes on until something happens elsewhere; the faulty rank does not come here.
void work(Job& job, const Plan& plan) {
  if (plan.place != "work") return;
  awex::wait_until([] { return false; }, "local work", job.deadline(), job);
}

/// Rank after RANK fails; RANK does its fault before it recovers.
void recover(Job& job, const Plan& plan) {
  if (plan.place != "recovery" && plan.place != "in recovery") return;
  try {
    if (job.rank() == (plan.rank + 1) % job.size()) throw awex::runtime_error("a cause on purpose");
    exchange_around(job);
    job.agree(nullptr);
  } catch (const awex::Error& error) {
    reach(job, plan, "recovery");
    reach_in(job, plan, "in recovery", [&] { (void)job.recover(error); });
  }
}

/// Rank 0's wait for its clients: until the next one comes, or the job is told to end.
void idle(Job& job) {
  job.end_command();
  for (const awex::Deadline next(awex::Seconds(0.5)); !next.expired() && !job.told_to_end();) {
    job.poll();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

enum class Order : uint8_t { kWork, kEnd };

Order take_order(Job& job, int served) {
  constexpr int kCommands = 3;
  if (job.rank() != 0) return static_cast<Order>(job.await_order().at(0));
  idle(job);
  const auto order = job.told_to_end() || served == kCommands ? Order::kEnd : Order::kWork;
  const auto byte = static_cast<std::byte>(order);
  job.give_order({&byte, 1});
  return order;
}

int woken = 0;

void print_signals(const Job& job) {
  std::printf("rank %d: told to end %d, asked %d, woken %d\n", job.rank(),
              job.told_to_end() ? 1 : 0, awex::status_signals(), woken);
  std::fflush(stdout);
}

int serve(Job& job, const Plan& plan) {
  job.become_resident();
  awex::note_status_signals();
  awex::wake_on_signals([](void* count) { ++*static_cast<int*>(count); }, &woken);
  bool has_failed = false;
  for (int served = 0;; ++served) {
    try {
      if (served == 1) reach(job, plan, "rest");
      if (take_order(job, served) == Order::kEnd) {
        print_signals(job);
        job.finish();
        break;
      }
      if (served == 1) reach(job, plan, "command");
      job.set_phase("transfer");
      exchange_around(job);
      job.agree(nullptr);
    } catch (const awex::Error& error) {
      awex::log::error(job.recover(error));
      has_failed = true;
    }
  }
  return has_failed ? 1 : 0;
}

void run(Job& job, const Plan& plan) {
  job.set_phase("prepare");
  reach(job, plan, "start");
  job.synchronise_clocks();
  reach(job, plan, "gather");
  if (plan.place == "in late gather" && job.rank() == 0) {
    std::this_thread::sleep_for(plan.timeout / 2);
  }
  reach_in(job, plan, "in late gather",
           [&] { (void)job.all_gather_value(job.rank(), "a gathering"); });
  reach(job, plan, "reduce");
  uint64_t one = 1;
  reach_in(job, plan, "in reduce", [&] { job.all_reduce_sum({&one, 1}, "a sum"); });
  job.set_phase("transfer");
  reach(job, plan, "exchange");
  exchange_around(job);
  reach(job, plan, "work");
  work(job, plan);
  reach(job, plan, "agree");
  job.agree(nullptr);
  reach(job, plan, "finish");
  reach_in(job, plan, "in finish", [&] { job.finish(); });
}

}  // namespace

int MPI_Iallgather(const void* send, int sends, MPI_Datatype sent, void* receive, int receives,
                   MPI_Datatype received, MPI_Comm comm, MPI_Request* request) {
  if (is_lost()) return begin_nothing(request);
  return PMPI_Iallgather(send, sends, sent, receive, receives, received, comm, request);
}

int MPI_Iallreduce(const void* send, void* receive, int count, MPI_Datatype type, MPI_Op op,
                   MPI_Comm comm, MPI_Request* request) {
  if (is_lost()) return begin_nothing(request);
  return PMPI_Iallreduce(send, receive, count, type, op, comm, request);
}

int MPI_Ibarrier(MPI_Comm comm, MPI_Request* request) {
  return is_lost() ? begin_nothing(request) : PMPI_Ibarrier(comm, request);
}

int MPI_Comm_idup(MPI_Comm comm, MPI_Comm* made, MPI_Request* request) {
  return is_lost() ? begin_nothing(request) : PMPI_Comm_idup(comm, made, request);
}

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s FAULT RANK PLACE TIMEOUT_S\n", argv[0]);
    return 2;
  }
  const Plan plan{argv[1], std::stoi(argv[2]), argv[3], awex::Seconds(std::stod(argv[4]))};
  // Many such jobs start at once, on machines with fewer cores than ranks.
  const Job::Start start{.allowance = awex::Seconds(20), .launched_rank = {}, .report = {}};
  Job job(&argc, &argv, plan.timeout, start);
  try {
    job.set_peers(awex::test::gather_peers(job));
    print_shared_files();
    if (plan.place == "rest" || plan.place == "command") return serve(job, plan);
    recover(job, plan);
    run(job, plan);
    return 0;
  } catch (const awex::Error& error) {
    const awex::Error cause = job.announce_failure(error);
    job.await_turn_to_report(cause.code());
    awex::log::error(cause);
    std::printf("reported by rank %d at %.6f\n", job.rank(), now());
    std::fflush(stdout);
    job.abort(cause.code());
  }
}
