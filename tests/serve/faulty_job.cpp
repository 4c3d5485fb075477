// A resident job that is disturbed on purpose: `serve` with the same options, whose ranks look at
// each phase's start into the file that AWEX_FAULT names. It holds one line:
//   SERIAL RANK KIND PHASE ROLE TAG SECONDS
// When RANK begins the phase (TAG "-" for none) it does KIND, once for each SERIAL, and tells so in
// the file AWEX_FAULT.done: SERIAL and the time (CLOCK_MONOTONIC). The kinds:
//   kill, stop    the process, with SIGKILL or SIGSTOP
//   error, late   throws, at once or after SECONDS
//   stall, spin   does not come for SECONDS, asleep or at work
//   corruption    flips a bit of the phase's memory; one of the trainer's is repaired as soon as
//                 the file holds another SERIAL
//   allocation    the phase's next memory is refused; told when it is
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <string>
#include <thread>
#include <utility>

#include "base/log.hpp"
#include "base/wait.hpp"
#include "cli/serve.hpp"
#include "support/flipped_bit.hpp"
#include "support/refused_memory.hpp"

namespace {

struct Fault {
  uint64_t serial = 0;
  int rank = -1;
  std::string kind;
  std::string phase;
  std::string role;
  std::string tag;
  double seconds = 0;
};

class Disturber final : public awex::CycleObserver {
 public:
  Disturber(std::string path, const awex::Job& job) : path_(std::move(path)), job_(job) {}

  void phase_started(const awex::PhaseEvent& event) override {
    awex::test::allow_memory();  // a refusal is of one phase alone
    const Fault fault = read();
    if (damaged_ != nullptr && fault.serial != serial_) {
      awex::test::flip_bit(*std::exchange(damaged_, nullptr));
    }
    const std::string tag = event.tag.empty() ? "-" : event.tag;
    const bool is_now = fault.rank == job_.rank() && fault.serial != serial_ &&
                        fault.phase == event.phase && fault.role == event.role && fault.tag == tag;
    if (!is_now) return;
    serial_ = fault.serial;
    disturb(fault, event);
  }
  void phase_finished(const awex::PhaseEvent& /*event*/, double /*seconds*/,
                      uint64_t /*bytes*/) override {
    awex::test::allow_memory();
  }

 private:
  [[nodiscard]] Fault read() const {
    Fault fault;
    std::ifstream file(path_);
    file >> fault.serial >> fault.rank >> fault.kind >> fault.phase >> fault.role >> fault.tag >>
        fault.seconds;
    if (!file) fault.rank = -1;
    return fault;
  }

  void disturb(const Fault& fault, const awex::PhaseEvent& event) {
    if (fault.kind == "allocation") {
      return awex::test::refuse_memory([this] { tell(); });
    }
    tell();
    if (fault.kind == "kill") std::raise(SIGKILL);
    if (fault.kind == "stop") std::raise(SIGSTOP);
    if (fault.kind == "stall" || fault.kind == "late")
      std::this_thread::sleep_for(awex::Seconds(fault.seconds));
    if (fault.kind == "error" || fault.kind == "late") {
      throw awex::runtime_error("a fault on purpose");
    }
    if (fault.kind == "spin") {
      for (const awex::Stopwatch watch; watch.seconds() < fault.seconds;) {
      }
    }
    if (fault.kind != "corruption") return;
    awex::test::flip_bit(*event.region);
    // A transfer writes inference's weights anew; the trainer's state must be repaired.
    if (event.role == "trainer") damaged_ = event.region;
  }

  void tell() const {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    const auto line = fmt::format("{} {}.{:09}\n", serial_, now.tv_sec, now.tv_nsec);
    const int fd =
        ::open((path_ + ".done").c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ::write(fd, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
      std::abort();
    }
    ::close(fd);
  }

  std::string path_;
  const awex::Job& job_;
  uint64_t serial_ = 0;              ///< Of what this rank did last.
  awex::Region* damaged_ = nullptr;  ///< By it.
};

}  // namespace

int main(int argc, char** argv) {
  try {
    CLI::App parser;
    awex::ServeArguments arguments;
    awex::add_serve_options(parser, arguments);
    parser.parse(argc, argv);
    awex::complete_serve_options(parser, arguments);
    const char* path = std::getenv("AWEX_FAULT");
    if (path == nullptr) throw awex::request_error("AWEX_FAULT names no file");
    const auto observe = [path](const awex::Job& job) {
      return std::make_unique<Disturber>(path, job);
    };
    // Tests start many jobs, on machines with fewer cores than ranks and more to do.
    const awex::Job::Start start{.allowance = awex::Seconds(60), .launched_rank = {}, .report = {}};
    return static_cast<int>(awex::run_serve(arguments, observe, &argc, &argv, start));
  } catch (const awex::Error& error) {
    awex::log::error(error);
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    awex::log::error(awex::request_error(error.what()));
    return static_cast<int>(awex::ExitCode::kRequest);
  }
}
