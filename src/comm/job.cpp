#include "comm/job.hpp"

#include <mpi.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "base/checked.hpp"
#include "base/fixed_text.hpp"
#include "base/launch.hpp"
#include "base/log.hpp"
#include "comm/mpi_check.hpp"
#include "comm/process_watch.hpp"
#include "comm/signals.hpp"
#include "comm/wire_error.hpp"

namespace awex {
namespace {

using Clock = std::chrono::steady_clock;

enum Tag : int { kVerdictTag = 1, kOutcomeTag, kArrivalTag, kFailureTag, kDataTag, kProgressTag };

// When a wait for everyone fails, the rank that knows most should speak first. Local waits end
// after the timeout and say what they waited for; then rank 0, which knows who is missing; then the
// others, who ask rank 0 and, when it does not answer, name it.
constexpr Seconds kRankZeroGrace{0.5};
constexpr Seconds kOthersGrace{1.0};
constexpr Seconds kAnswerGrace{1.0};

// How long abort lets rank 0, or mpirun, end the job first.
constexpr Seconds kAbortGrace{1.5};
// How long a rank lets those before it report and end the job: all of them, then each one more.
constexpr Seconds kReportGrace{3};
constexpr Seconds kNextReportGrace{0.2};
// What MPI itself may need to end, on top of a short timeout.
constexpr Seconds kEndAllowance{5};
// Another rank's failure may still be on its way; it says more than SIGTERM or that rank's end.
constexpr Seconds kCauseGrace{0.1};
// Signals that come together are one: only later ones say that the job is being ended by others.
constexpr Seconds kSignalBurst{0.3};

// How often a rank tells of progress: the timeout is long against it.
constexpr Seconds kLongestTellInterval{0.25};
constexpr double kTellsPerTimeout = 20;

constexpr Clock::duration kListenInterval = std::chrono::microseconds(20);
constexpr Clock::duration kWatchInterval = std::chrono::milliseconds(5);

// MPI counts are ints.
constexpr size_t kLargestMessage = 1ULL << 30;

/// Point-to-point requests of one wait, each with the rank at its other end. What is still open
/// when it is destroyed is cancelled, so that MPI does not write to memory that its owner frees.
class Requests {
 public:
  Requests() = default;
  Requests(const Requests&) = delete;
  Requests& operator=(const Requests&) = delete;
  Requests(Requests&&) = delete;
  Requests& operator=(Requests&&) = delete;
  ~Requests() {
    for (auto& request : requests_) {
      if (request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&request);
      MPI_Request_free(&request);
    }
  }

  void send(std::span<const std::byte> bytes, int rank, Tag tag, MPI_Comm comm) {
    MPI_Request request = MPI_REQUEST_NULL;
    AWEX_MPI(
        MPI_Isend(bytes.data(), narrow<int>(bytes.size()), MPI_BYTE, rank, tag, comm, &request),
        "send {} to rank {}", format_bytes(bytes.size()), rank);
    add(request, rank);
  }

  void receive(std::span<std::byte> bytes, int rank, Tag tag, MPI_Comm comm) {
    MPI_Request request = MPI_REQUEST_NULL;
    AWEX_MPI(
        MPI_Irecv(bytes.data(), narrow<int>(bytes.size()), MPI_BYTE, rank, tag, comm, &request),
        "receive {} from rank {}", format_bytes(bytes.size()), rank);
    add(request, rank);
  }

  /// Whether all are done.
  [[nodiscard]] bool test() {
    int count = 0;
    AWEX_MPI(MPI_Testsome(narrow<int>(requests_.size()), requests_.data(), &count, done_.data(),
                          MPI_STATUSES_IGNORE),
             "make progress with {} messages", requests_.size());
    return count == MPI_UNDEFINED || std::all_of(requests_.begin(), requests_.end(),
                                                 [](auto r) { return r == MPI_REQUEST_NULL; });
  }

  /// The ranks that open requests wait for, in order, each once.
  [[nodiscard]] std::vector<int> missing() const {
    std::set<int> ranks;
    for (size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] != MPI_REQUEST_NULL) ranks.insert(ranks_[i]);
    }
    return {ranks.begin(), ranks.end()};
  }

 private:
  void add(MPI_Request request, int rank) {
    requests_.push_back(request);
    ranks_.push_back(rank);
    done_.push_back(0);
  }

  std::vector<MPI_Request> requests_;
  std::vector<int> ranks_;
  std::vector<int> done_;  ///< Room for MPI_Testsome.
};

/// WorkProgress as plain data.
struct WireProgress {
  FixedText<64> what{};
  FixedText<512> file{};
  uint64_t done_bytes = 0;
  uint64_t all_bytes = 0;
  bool ended = true;
};
static_assert(std::is_trivially_copyable_v<WireProgress>);

/// The last that a rank has told of its long work.
struct Heard {
  WireProgress progress;
  Clock::time_point when;
};

std::string describe_progress(const WireProgress& progress) {
  const auto amount = progress.all_bytes == 0
                          ? format_bytes(progress.done_bytes)
                          : fmt::format("{} of {}", format_bytes(progress.done_bytes),
                                        format_bytes(progress.all_bytes));
  const auto file = text_of(progress.file);
  return fmt::format("{}: {} read{}", text_of(progress.what), amount,
                     file.empty() ? "" : ", last from " + file);
}

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

template <class T>
std::span<std::byte> writable_bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

std::string host_name() {
  std::array<char, HOST_NAME_MAX + 1> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) {
    throw errno_error("learn this host's name", "gethostname", errno);
  }
  return name.data();
}

std::string in_phase(const std::string& phase) {
  return phase.empty() ? "while the job starts" : fmt::format("in phase '{}'", phase);
}

}  // namespace

struct Job::State {
  Seconds timeout{0};
  MPI_Comm world = MPI_COMM_NULL;  ///< Ours alone: messages never mix with another library's.
  int rank = 0;
  int size = 1;
  std::vector<int> node_ranks;  ///< World ranks of this node.
  int node_rank = 0;
  int nodes = 1;
  std::string host;
  Clock::time_point start = Clock::now();
  std::vector<Peer> peers;
  std::string phase;
  ProcessWatch watch;
  Clock::time_point next_listen;
  Clock::time_point next_watch;

  std::optional<Error> failure;   ///< Every wait throws it, once it is known.
  std::optional<Error> question;  ///< Rank 0: somebody waits for us too long.
  bool told = false;              ///< The failure is known to all ranks.
  bool agreed = false;
  std::optional<Deadline> signal_burst;  ///< Of the signals that this rank reports itself.
  int known_signals = 0;
  std::set<int> lost;  ///< Ranks that are gone or do not answer.

  std::map<int, Heard> working;  ///< Other ranks in the midst of long work, as far as known here.
  std::map<int, WireProgress> told_work;  ///< The last of every rank that has told any.
  std::function<void(uint64_t, uint64_t)> watcher;
  WireProgress own_work;            ///< Rank 0 tells it to all.
  Clock::time_point last_progress;  ///< Of any rank.
  Clock::time_point next_tell;
  bool news = false;  ///< Rank 0: progress that the others do not know of.

  // MPI may read and write these until it is finalised.
  std::list<std::pair<WireProgress, MPI_Request>> progress_box;
  std::list<std::pair<WireError, MPI_Request>> outbox;
  std::list<std::vector<std::byte>> abandoned;

  [[nodiscard]] double now() const { return Seconds(Clock::now() - start).count(); }
  [[nodiscard]] std::string describe(int other) const;
  [[nodiscard]] std::string describe_missing(const std::vector<int>& ranks) const;
  [[nodiscard]] std::vector<int> stopped_ranks() const;
  [[nodiscard]] std::string stopped_processes() const;
  [[nodiscard]] ErrorContext context_of(int other) const;
  [[nodiscard]] Error located(Error error) const;
  [[nodiscard]] Error late(const std::vector<int>& ranks, const std::string& deed) const;

  void connect(int* argc, char*** argv);
  void learn_node();
  void watch_node();

  void poll();
  void listen();
  void listen_for_cause();
  void look_for_lost();
  void look_for_signal(int signal_number);
  [[noreturn]] void fail(const Error& error);
  void announce(const Error& error);
  void tell(int to, const WireError& wire);

  void progressed(const WorkProgress& progress);
  void hear_of_progress();
  void tell_of_progress();
  void send_progress(int to);
  void look_for_silent();
  void show_progress(int of, const WireProgress& progress);
  [[nodiscard]] bool overdue(const Deadline& deadline, Seconds grace) const;

  void wait_for_others(Requests& requests, const std::string& deed,
                       const std::vector<WireError>& verdicts);
  template <class Done>
  void wait_for_rank_zero(Done done, const std::string& deed);
  template <class Done>
  void wait_for_collective(Done done, const std::string& what);
  void agree(const WireError& mine);
  [[nodiscard]] WireError decide(const WireError& mine);
  [[nodiscard]] WireError ask_for_outcome(const WireError& mine);
  void all_reduce(std::span<uint64_t> values, MPI_Op operation, const std::string& what);
  void arrive(const std::string& what);
  void push_failures();
  void pause_until_ended(Seconds longest);
  [[nodiscard]] bool told_to_end_now();
};

// ---- Who is who

std::string Job::State::describe(int other) const {
  return peers.empty() ? fmt::format("rank {}", other)
                       : peers.at(static_cast<size_t>(other)).describe();
}

std::string Job::State::describe_missing(const std::vector<int>& ranks) const {
  constexpr size_t kMostNamed = 8;
  std::vector<std::string> names;
  for (const int missing : ranks) {
    if (names.size() == kMostNamed) {
      names.push_back(fmt::format("{} more", ranks.size() - kMostNamed));
      break;
    }
    names.push_back(describe(missing));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

/// Those on this host.
std::vector<int> Job::State::stopped_ranks() const {
  std::vector<int> stopped;
  if (peers.empty()) return stopped;
  for (const int other : node_ranks) {
    if (is_stopped(peers[static_cast<size_t>(other)].pid)) stopped.push_back(other);
  }
  return stopped;
}

/// Names processes of this host that are stopped, as a further sentence of a message: a stopped
/// rank is seldom the one that is waited for directly.
std::string Job::State::stopped_processes() const {
  std::string text;
  for (const int other : stopped_ranks()) {
    const auto& peer = peers[static_cast<size_t>(other)];
    text += fmt::format("; {} (pid {}) is stopped by a signal or a debugger", peer.describe(),
                        peer.pid);
  }
  return text;
}

ErrorContext Job::State::context_of(int other) const {
  ErrorContext context;
  context.rank = other;
  context.phase = phase;
  if (!peers.empty()) {
    const auto& peer = peers.at(static_cast<size_t>(other));
    context.host = peer.host;
    context.gpu = std::to_string(peer.device.index);
    context.role = role_name(peer.role);
  }
  if (other == rank) context.host = host;
  return context;
}

/// The error with what it does not say of its place filled in from this rank's.
Error Job::State::located(Error error) const {
  auto& there = error.context();
  if (there.rank) return error;
  auto here = context_of(rank);
  here.tag = there.tag;
  here.tensor = there.tensor;
  if (!there.phase.empty()) here.phase = there.phase;
  there = std::move(here);
  return error;
}

/// "rank 3 (inference, host a, gpu 1) has not finished phase 'transfer' after 30 s".
Error Job::State::late(const std::vector<int>& ranks, const std::string& deed) const {
  return located(Error(ExitCode::kDeadline,
                       fmt::format("{} {} not {} after {}{}", describe_missing(ranks),
                                   ranks.size() == 1 ? "has" : "have", deed,
                                   format_seconds(timeout.count()), stopped_processes()),
                       kDeadlineHint));
}

// ---- Failures

void Job::State::poll() {
  if (failure) throw Error(*failure);
  const int signal_number = termination_signal();
  const auto time = Clock::now();
  if (signal_number == 0 && time < next_listen) return;
  next_listen = time + kListenInterval;
  listen();
  if (failure) throw Error(*failure);
  if (question) fail(*question);
  hear_of_progress();
  if (rank == 0 && news && time >= next_tell) tell_of_progress();
  look_for_silent();
  if (signal_number != 0 || time >= next_watch) {
    next_watch = time + kWatchInterval;
    look_for_lost();
  }
  if (signal_number != 0) look_for_signal(signal_number);
}

/// Receives what other ranks tell of failures; the first failure counts.
void Job::State::listen() {
  while (true) {
    int found = 0;
    MPI_Status status{};
    AWEX_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kFailureTag, world, &found, &status),
             "look for other ranks' failures");
    if (found == 0) return;
    WireError wire;
    AWEX_MPI(MPI_Recv(&wire, sizeof(wire), MPI_BYTE, status.MPI_SOURCE, kFailureTag, world,
                      MPI_STATUS_IGNORE),
             "receive the failure of rank {}", status.MPI_SOURCE);
    if (wire.rank_zero_lost) lost.insert(0);
    if (wire.telling == Telling::kQuestion) {
      question = from_wire(wire);
    } else if (!failure) {
      failure = from_wire(wire);
      told = true;
      agreed = false;
    }
  }
}

/// Takes in what arrives for a moment; throws if it is a failure, which then is the cause.
void Job::State::listen_for_cause() {
  const Deadline grace(kCauseGrace);
  for (uint64_t spins = 0; !grace.expired(); ++spins) {
    listen();
    if (failure) throw Error(*failure);
    pause_in_wait(spins);
  }
}

void Job::State::look_for_lost() {
  const auto gone = watch.gone();
  if (gone.empty()) return;
  // It may have told its failure before it ended.
  listen_for_cause();
  lost.insert(gone.begin(), gone.end());
  std::vector<std::string> names;
  for (const int other : gone) {
    const auto& peer = peers[static_cast<size_t>(other)];
    names.push_back(fmt::format("{} pid {}", peer.describe(), peer.pid));
  }
  fail(Error(ExitCode::kPeerLost,
             fmt::format("{} {} gone {}", fmt::join(names, ", "), gone.size() == 1 ? "is" : "are",
                         in_phase(phase)),
             "see its own message above; without one, look for a signal or the kernel's "
             "out-of-memory killer (dmesg)"));
}

void Job::State::look_for_signal(int signal_number) {
  listen_for_cause();
  look_for_lost();
  const char* name = signal_number == SIGINT ? "SIGINT" : "SIGTERM";
  fail(runtime_error(fmt::format("told to end by {} {}", name, in_phase(phase)),
                     fmt::format("{} sends it to all ranks when one has died or the job is "
                                 "cancelled",
                                 launcher_name(this_launch()))));
}

/// Throws the first failure known here, which is `error` if there was none, as every wait to come.
void Job::State::fail(const Error& error) {
  if (!failure) failure = located(error);
  agreed = false;
  throw Error(*failure);
}

void Job::State::announce(const Error& error) {
  agreed = false;
  if (!told) listen();
  if (!failure) failure = located(error);
  if (told) return;
  told = true;
  auto wire = to_wire(*failure, now());
  wire.rank_zero_lost = lost.contains(0);
  const auto gone = watch.gone();
  for (int other = 0; other < size; ++other) {
    const bool hears = std::find(gone.begin(), gone.end(), other) == gone.end();
    if (other != rank && hears) tell(other, wire);
  }
}

void Job::State::tell(int to, const WireError& wire) {
  auto& [message, request] = outbox.emplace_back(wire, MPI_REQUEST_NULL);
  AWEX_MPI(MPI_Isend(&message, sizeof(message), MPI_BYTE, to, kFailureTag, world, &request),
           "tell rank {} of a failure", to);
}

// ---- Progress of long work

/// Takes in how far this rank has come, and lets the others know from time to time.
void Job::State::progressed(const WorkProgress& progress) {
  const auto time = Clock::now();
  last_progress = time;
  news = true;
  const bool turns = own_work.ended || progress.ended;
  own_work = {fixed_text<64>(progress.what), fixed_text<512>(progress.file), progress.done_bytes,
              progress.all_bytes, progress.ended};
  if (rank == 0) show_progress(0, own_work);
  if (turns || time >= next_tell) tell_of_progress();
}

/// Rank 0 tells all what it knows to go on; the others tell rank 0.
void Job::State::tell_of_progress() {
  news = false;
  next_tell = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                 std::min(kLongestTellInterval, timeout / kTellsPerTimeout));
  progress_box.remove_if([](auto& sent) {
    int done = 0;
    MPI_Test(&sent.second, &done, MPI_STATUS_IGNORE);
    return done != 0;
  });
  if (rank != 0) return send_progress(0);
  for (int other = 1; other < size; ++other) send_progress(other);
}

void Job::State::send_progress(int to) {
  auto& [message, request] = progress_box.emplace_back(own_work, MPI_REQUEST_NULL);
  AWEX_MPI(MPI_Isend(&message, sizeof(message), MPI_BYTE, to, kProgressTag, world, &request),
           "tell rank {} of progress", to);
}

void Job::State::hear_of_progress() {
  while (true) {
    int found = 0;
    MPI_Status status{};
    AWEX_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kProgressTag, world, &found, &status),
             "look for other ranks' progress");
    if (found == 0) return;
    WireProgress wire;
    AWEX_MPI(MPI_Recv(&wire, sizeof(wire), MPI_BYTE, status.MPI_SOURCE, kProgressTag, world,
                      MPI_STATUS_IGNORE),
             "receive the progress of rank {}", status.MPI_SOURCE);
    last_progress = Clock::now();
    news = rank == 0;
    if (rank == 0) show_progress(status.MPI_SOURCE, wire);
    if (wire.ended) {
      working.erase(status.MPI_SOURCE);
    } else {
      working[status.MPI_SOURCE] = {wire, last_progress};
    }
  }
}

/// Shows how far all ranks are together.
void Job::State::show_progress(int of, const WireProgress& progress) {
  told_work[of] = progress;
  if (!watcher) return;
  uint64_t done = 0;
  uint64_t all = 0;
  for (const auto& [other, work] : told_work) {
    done += work.done_bytes;
    all += work.all_bytes;
  }
  watcher(done, all);
}

/// A rank that falls silent in the midst of its work fails the job although others go on.
void Job::State::look_for_silent() {
  const auto limit = timeout + (rank == 0 ? kRankZeroGrace : kOthersGrace);
  for (const auto& [other, heard] : working) {
    if (Clock::now() - heard.when < limit) continue;
    lost.insert(other);
    const auto error =
        located(Error(ExitCode::kDeadline,
                      fmt::format("{} has told of no progress for {}: {}{}", describe(other),
                                  format_seconds(timeout.count()),
                                  describe_progress(heard.progress), stopped_processes()),
                      kDeadlineHint));
    announce(error);
    fail(error);
  }
}

/// Whether a wait of the job's timeout and `grace` is over, which any rank's progress renews.
bool Job::State::overdue(const Deadline& deadline, Seconds grace) const {
  return deadline.expired() && Clock::now() - last_progress >= timeout + grace;
}

// ---- Waits for everyone

/// On rank 0: waits until everyone's message is there. Otherwise fails with the first cause among
/// the `verdicts` that came, and if there is none, with the names of those who did not come.
void Job::State::wait_for_others(Requests& requests, const std::string& deed,
                                 const std::vector<WireError>& verdicts) {
  const Deadline deadline(timeout + kRankZeroGrace);
  for (uint64_t spins = 0; !requests.test(); ++spins) {
    listen();
    const bool late_already = question && !failure;
    question.reset();
    if (!late_already) poll();
    if (late_already || overdue(deadline, kRankZeroGrace)) {
      const auto* cause = first_cause(verdicts);
      const auto missing = requests.missing();
      lost.insert(missing.begin(), missing.end());
      const auto error = cause != nullptr ? from_wire(*cause) : late(missing, deed);
      announce(error);
      fail(error);
    }
    pause_in_wait(spins);
  }
}

/// On the other ranks: waits for what rank 0 must do first. When it takes too long, asks rank 0 who
/// is missing, and names rank 0 if it does not answer.
template <class Done>
void Job::State::wait_for_rank_zero(Done done, const std::string& deed) {
  const Deadline deadline(timeout + kOthersGrace);
  std::optional<Deadline> answer;
  for (uint64_t spins = 0; !done(); ++spins) {
    poll();
    if (!answer && overdue(deadline, kOthersGrace)) {
      auto wire = to_wire(late({0}, deed), now());
      wire.telling = Telling::kQuestion;
      tell(0, wire);
      answer.emplace(kAnswerGrace);
    }
    if (answer && answer->expired()) {
      lost.insert(0);
      const auto error = late({0}, deed);
      announce(error);
      fail(error);
    }
    pause_in_wait(spins);
  }
}

/// Waits for a collective call of MPI that every rank has come to, as far as rank 0 knows.
template <class Done>
void Job::State::wait_for_collective(Done done, const std::string& what) {
  if (rank != 0) return wait_for_rank_zero(done, fmt::format("completed '{}'", what));
  const Deadline deadline(timeout + kRankZeroGrace);
  for (uint64_t spins = 0; !done(); ++spins) {
    poll();
    if (overdue(deadline, kRankZeroGrace)) {
      const Error error(ExitCode::kDeadline,
                        fmt::format("'{}' is not done after {}, though every rank came to it{}",
                                    what, format_seconds(timeout.count()), stopped_processes()),
                        kDeadlineHint);
      announce(error);
      fail(error);
    }
    pause_in_wait(spins);
  }
}

WireError Job::State::decide(const WireError& mine) {
  std::vector<WireError> verdicts(static_cast<size_t>(size));
  verdicts[0] = mine;
  Requests inbox;
  for (int other = 1; other < size; ++other) {
    inbox.receive(writable_bytes_of(verdicts[static_cast<size_t>(other)]), other, kVerdictTag,
                  world);
  }
  wait_for_others(inbox, fmt::format("finished phase '{}'", phase), verdicts);

  const auto* cause = first_cause(verdicts);
  const WireError outcome = cause != nullptr ? *cause : WireError{};
  Requests answers;
  for (int other = 1; other < size; ++other) {
    answers.send(bytes_of(outcome), other, kOutcomeTag, world);
  }
  wait_for_others(answers, "taken the outcome", {});
  return outcome;
}

WireError Job::State::ask_for_outcome(const WireError& mine) {
  WireError outcome;
  Requests requests;
  requests.receive(writable_bytes_of(outcome), 0, kOutcomeTag, world);
  requests.send(bytes_of(mine), 0, kVerdictTag, world);
  wait_for_rank_zero([&] { return requests.test(); },
                     fmt::format("ended phase '{}' for all ranks", phase));
  return outcome;
}

/// Lets rank 0 know who comes to a collective call: MPI's own calls never say who is missing.
void Job::State::arrive(const std::string& what) {
  agreed = false;
  Requests requests;
  if (rank != 0) {
    requests.send({}, 0, kArrivalTag, world);
    wait_for_rank_zero([&] { return requests.test(); }, fmt::format("come to '{}'", what));
    return;
  }
  for (int other = 1; other < size; ++other) requests.receive({}, other, kArrivalTag, world);
  wait_for_others(requests, fmt::format("come to '{}'", what), {});
}

// ---- Start

void Job::State::connect(int* argc, char*** argv) {
  int provided = 0;
  if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    throw runtime_error("cannot initialise MPI: MPI_Init_thread failed",
                        fmt::format("start the program with {}", start_command(this_launch(), 2)));
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_FUNNELED) {
    throw runtime_error("this MPI does not allow programs with threads (MPI_THREAD_FUNNELED)");
  }
  AWEX_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &world), "make the job's own communicator");
  AWEX_MPI(MPI_Comm_rank(world, &rank), "learn this rank");
  AWEX_MPI(MPI_Comm_size(world, &size), "learn the number of ranks");
}

void Job::State::learn_node() {
  MPI_Comm node = MPI_COMM_NULL;
  AWEX_MPI(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node),
           "find the ranks of this node");
  int node_size = 0;
  AWEX_MPI(MPI_Comm_rank(node, &node_rank), "learn this rank on its node");
  AWEX_MPI(MPI_Comm_size(node, &node_size), "learn the number of this node's ranks");
  node_ranks.resize(static_cast<size_t>(node_size));
  AWEX_MPI(MPI_Allgather(&rank, 1, MPI_INT, node_ranks.data(), 1, MPI_INT, node),
           "gather the ranks of this node");
  const int first = node_rank == 0 ? 1 : 0;
  AWEX_MPI(MPI_Allreduce(&first, &nodes, 1, MPI_INT, MPI_SUM, world), "count the nodes");
  AWEX_MPI(MPI_Comm_free(&node), "free the node's communicator");
}

void Job::State::watch_node() {
  watch.clear();
  for (const int other : node_ranks) {
    if (other == rank) continue;
    watch.add(other, peers[static_cast<size_t>(other)].pid);
  }
}

Job::Job(int* argc, char*** argv, Seconds timeout, const Start& start)
    : state_(std::make_unique<State>()) {
  auto& s = *state_;
  s.timeout = timeout;
  s.host = host_name();
  const Seconds allowed = timeout + start.allowance;
  const Watchdog watchdog(
      allowed, ExitCode::kDeadline,
      fmt::format("{} on host {} has not got through MPI's start after {}: some rank of the "
                  "job has not started, or MPI's network setup is wrong",
                  start.launched_rank ? fmt::format("rank {}", *start.launched_rank) : "a rank",
                  s.host, format_seconds(allowed.count())),
      start.report);
  s.connect(argc, argv);
  s.learn_node();
  note_termination_signals();
  // Waits sleep for microseconds; Linux would add 50 to each.
  ::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
}

Job::~Job() = default;

int Job::rank() const { return state_->rank; }
int Job::size() const { return state_->size; }
int Job::node_rank() const { return state_->node_rank; }
int Job::node_size() const { return static_cast<int>(state_->node_ranks.size()); }
int Job::nodes() const { return state_->nodes; }
const std::string& Job::host() const { return state_->host; }
Deadline Job::deadline() const { return Deadline(state_->timeout); }
double Job::now() const { return state_->now(); }
const std::vector<Peer>& Job::peers() const { return state_->peers; }
std::string Job::describe(int rank) const { return state_->describe(rank); }
ErrorContext Job::context() const { return state_->context_of(state_->rank); }
ErrorContext Job::context_of(int rank) const { return state_->context_of(rank); }
const std::string& Job::phase() const { return state_->phase; }
bool Job::failure_is_agreed() const { return state_->agreed; }
void Job::poll() { state_->poll(); }
void Job::progressed(const WorkProgress& progress) { state_->progressed(progress); }
void Job::watch_progress(std::function<void(uint64_t, uint64_t)> watcher) {
  state_->watcher = std::move(watcher);
  state_->told_work.clear();
}
bool Job::overdue(const Deadline& deadline) const { return state_->overdue(deadline, Seconds(0)); }

bool Job::is_reporter() const {
  for (int lower = 0; lower < state_->rank; ++lower) {
    if (!state_->lost.contains(lower)) return false;
  }
  return true;
}

void Job::set_peers(std::vector<Peer> peers) {
  if (peers.size() != static_cast<size_t>(size())) {
    throw runtime_error(
        fmt::format("a job of {} ranks was told of {} peers", size(), peers.size()));
  }
  state_->peers = std::move(peers);
  state_->watch_node();
}

void Job::set_phase(std::string phase) {
  state_->phase = std::move(phase);
  state_->agreed = false;
}

// ---- Collectives

void Job::State::agree(const WireError& mine) {
  agreed = false;
  const WireError outcome = rank == 0 ? decide(mine) : ask_for_outcome(mine);
  if (outcome.telling == Telling::kSuccess) return;
  agreed = true;
  throw from_wire(outcome);
}

void Job::agree(const Error* mine) {
  auto& s = *state_;
  s.agree(mine != nullptr ? to_wire(s.located(*mine), s.now()) : WireError{});
}

void Job::fail_together(const Error& error) {
  auto& s = *state_;
  Error common = error;
  if (common.context().phase.empty()) common.context().phase = s.phase;
  s.agree(to_wire(common, s.now()));
  throw common;  // agree throws on every rank; this tells the compiler so
}

Error Job::announce_failure(const Error& error) noexcept {
  try {
    state_->announce(error);
  } catch (const std::exception& e) {
    log::warning(fmt::format("cannot tell other ranks of a failure: {}", e.what()));
  }
  return state_->failure ? *state_->failure : error;
}

void Job::synchronise_clocks() {
  // The agreement is the common moment of different nodes; the ranks of one node share a clock and
  // so take their first rank's reading.
  agree(nullptr);
  const auto readings =
      all_gather_value(Clock::now().time_since_epoch().count(), "the clocks of all ranks");
  const auto first = static_cast<size_t>(state_->node_ranks.front());
  state_->start = Clock::time_point(Clock::duration(readings[first]));
}

std::vector<std::byte> Job::all_gather(std::span<const std::byte> send, const std::string& what) {
  auto& s = *state_;
  const int count = narrow<int>(send.size());
  s.arrive(what);
  auto& from = s.abandoned.emplace_back(send.begin(), send.end());
  auto& to = s.abandoned.emplace_back(send.size() * static_cast<size_t>(s.size));
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(
      MPI_Iallgather(from.data(), count, MPI_BYTE, to.data(), count, MPI_BYTE, s.world, &request),
      "gather {} from every rank for '{}'", format_bytes(send.size()), what);
  s.wait_for_collective(
      [&] {
        int done = 0;
        AWEX_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "gather '{}'", what);
        return done != 0;
      },
      what);
  auto result = std::move(to);
  s.abandoned.clear();
  return result;
}

void Job::State::all_reduce(std::span<uint64_t> values, MPI_Op operation, const std::string& what) {
  const int count = narrow<int>(values.size());
  arrive(what);
  auto& results = abandoned.emplace_back(values.size_bytes());
  std::memcpy(results.data(), values.data(), values.size_bytes());
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(
      MPI_Iallreduce(MPI_IN_PLACE, results.data(), count, MPI_UINT64_T, operation, world, &request),
      "reduce {} numbers for '{}'", count, what);
  wait_for_collective(
      [&] {
        int done = 0;
        AWEX_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "reduce '{}'", what);
        return done != 0;
      },
      what);
  std::memcpy(values.data(), results.data(), values.size_bytes());
  abandoned.clear();
}

void Job::all_reduce_sum(std::span<uint64_t> values, const std::string& what) {
  state_->all_reduce(values, MPI_SUM, what);
}

void Job::all_reduce_max(std::span<uint64_t> values, const std::string& what) {
  state_->all_reduce(values, MPI_MAX, what);
}

void Job::exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives,
                   const std::string& what) {
  auto& s = *state_;
  Requests requests;
  for (const auto& [rank, bytes] : receives) {
    for (size_t at = 0; at < bytes.size(); at += kLargestMessage) {
      requests.receive(bytes.subspan(at, std::min(kLargestMessage, bytes.size() - at)), rank,
                       kDataTag, s.world);
    }
  }
  for (const auto& [rank, bytes] : sends) {
    for (size_t at = 0; at < bytes.size(); at += kLargestMessage) {
      requests.send(bytes.subspan(at, std::min(kLargestMessage, bytes.size() - at)), rank, kDataTag,
                    s.world);
    }
  }
  wait_for([&] { return requests.test(); },
           [&] {
             return Late{requests.missing(), fmt::format("taken part in '{}'", what)};
           });
}

void Job::fail_late(const Late& late) {
  auto& s = *state_;
  // The late may be waiting themselves for others; the stopped are lost for certain.
  const auto stopped = s.stopped_ranks();
  s.lost.insert(stopped.begin(), stopped.end());
  const auto error = s.late(late.ranks, late.deed);
  s.announce(error);
  s.fail(error);
}

// ---- End

void Job::finish() {
  auto& s = *state_;
  const std::string what = "the end of the job";
  s.arrive(what);
  MPI_Request request = MPI_REQUEST_NULL;
  AWEX_MPI(MPI_Ibarrier(s.world, &request), "end the job");
  s.wait_for_collective(
      [&] {
        int done = 0;
        AWEX_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "end the job");
        return done != 0;
      },
      what);
  s.watch.clear();  // from here on processes end, as they should
  const Watchdog watchdog(
      s.timeout + kEndAllowance, ExitCode::kDeadline,
      fmt::format("{}: MPI_Finalize is not done after {}: another rank does not come to its end",
                  s.describe(s.rank), format_seconds((s.timeout + kEndAllowance).count())));
  AWEX_MPI(MPI_Comm_free(&s.world), "free the job's communicator");
  AWEX_MPI(MPI_Finalize(), "finalise MPI");
}

/// Lets MPI send what `tell` has queued.
void Job::State::push_failures() {
  for (auto& [wire, request] : outbox) {
    int done = 0;
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
  }
}

/// Whether others end this job, rather than that it was told to end and reports it.
bool Job::State::told_to_end_now() {
  if (signal_burst && !signal_burst->expired()) known_signals = termination_signals();
  return termination_signals() > known_signals;
}

/// Sleeps until mpirun ends this process, at most `longest`. Makes no MPI call: after a failure MPI
/// may still have requests on memory that has been freed while unwinding.
void Job::State::pause_until_ended(Seconds longest) {
  const Deadline deadline(longest);
  while (!told_to_end_now() && !deadline.expired()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void Job::await_turn_to_report(ExitCode code) {
  auto& s = *state_;
  if (termination_signal() != 0) s.signal_burst.emplace(kSignalBurst);
  s.push_failures();
  Seconds grace = kReportGrace;
  for (int earlier = 0; earlier < s.rank; ++earlier) {
    if (s.lost.contains(earlier)) continue;
    s.pause_until_ended(grace);
    if (s.told_to_end_now()) std::_Exit(static_cast<int>(code));
    s.lost.insert(earlier);
    grace = kNextReportGrace;
  }
}

void Job::abort(ExitCode code) {
  auto& s = *state_;
  const Watchdog watchdog(kAbortGrace + kEndAllowance, code,
                          fmt::format("{}: MPI_Abort does not end the job", s.describe(s.rank)));
  s.push_failures();
  const bool mpirun_comes_first = code == ExitCode::kPeerLost;
  const bool reporter_comes_first = !is_reporter();
  if (mpirun_comes_first || reporter_comes_first) {
    s.pause_until_ended(kAbortGrace);
    if (s.told_to_end_now()) std::_Exit(static_cast<int>(code));
  }
  MPI_Abort(s.world, static_cast<int>(code));
  std::_Exit(static_cast<int>(code));
}

}  // namespace awex
