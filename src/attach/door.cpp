#include "attach/door.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/log.hpp"
#include "base/private_directory.hpp"
#include "base/utc_now.hpp"
#include "base/whole_file.hpp"

namespace awex::attach {
namespace {

constexpr int kMostAtTheDoor = 8;
/// How long an engine may take to say who it is.
constexpr Seconds kSlowestHello{10};
/// How long one may take to read what needs no answer.
constexpr Seconds kSlowestReader{5};
/// How often a wait without an end tells that it goes on.
constexpr Seconds kTellInterval{0.1};

UniqueFd listen_at(const std::string& path) {
  const auto attempt = fmt::format("let an engine attach at \"{}\"", path);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    throw runtime_error(fmt::format("cannot {}: the path is too long", attempt),
                        "set XDG_RUNTIME_DIR to a directory with a short name");
  }
  path.copy(static_cast<char*>(address.sun_path), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) throw errno_error(attempt, "socket", errno);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    throw errno_error(attempt, "bind", errno);
  }
  if (::listen(socket.get(), kMostAtTheDoor) != 0) throw errno_error(attempt, "listen", errno);
  return socket;
}

/// A file in memory that nobody can shorten under those who map it.
UniqueFd make_memory_file(const char* name, uint64_t bytes) {
  const auto attempt = fmt::format("make \"{}\"", name);
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) throw errno_error(attempt, "memfd_create", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    throw errno_error(attempt, "ftruncate", errno);
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
    throw errno_error(attempt, "fcntl", errno);
  }
  return fd;
}

/// The page itself, which lives as long as this.
class OwnPage {
 public:
  OwnPage() : fd_(make_memory_file("awex-control", sizeof(ControlPage))) {
    void* page =
        ::mmap(nullptr, sizeof(ControlPage), PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    if (page == MAP_FAILED) throw errno_error("map the engine's control page", "mmap", errno);
    page_ = new (page) ControlPage;
  }
  OwnPage(const OwnPage&) = delete;
  OwnPage& operator=(const OwnPage&) = delete;
  OwnPage(OwnPage&&) = delete;
  OwnPage& operator=(OwnPage&&) = delete;
  ~OwnPage() { ::munmap(page_, sizeof(ControlPage)); }

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] ControlPage& page() const { return *page_; }

 private:
  UniqueFd fd_;
  ControlPage* page_ = nullptr;
};

UniqueFd file_of(std::string_view bytes) {
  auto fd = make_memory_file("awex-kept", bytes.size());
  if (!write_from_start(fd.get(), bytes)) {
    throw errno_error("keep what the engine wanted kept", "pwrite", errno);
  }
  return fd;
}

/// What an engine wants kept. Only a file answers at once.
std::string read_kept(const ToRank& message, const std::vector<UniqueFd>& fds) {
  struct stat status {};
  const bool is_file = fds.size() == 1 && ::fstat(fds[0].get(), &status) == 0 &&
                       S_ISREG(status.st_mode) &&
                       static_cast<uint64_t>(status.st_size) >= message.kept_bytes;
  if (!is_file || message.kept_bytes > kMostKeptBytes) {
    throw request_error(fmt::format("what it wants kept is not a file of {} bytes, or too long",
                                    message.kept_bytes));
  }
  auto kept = read_from_start(fds[0].get(), message.kept_bytes);
  if (!kept || kept->size() < message.kept_bytes) {
    throw errno_error("read what the engine wants kept", "pread", errno);
  }
  return std::move(*kept);
}

/// The process at the other end, of this user; 0 for others.
int peer_of(const UniqueFd& socket) {
  ucred other{};
  socklen_t size = sizeof(other);
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &other, &size) != 0) return 0;
  return other.uid == ::geteuid() ? other.pid : 0;
}

const char* deed_of(const ToEngine& request) {
  switch (request.kind) {
    case ToEngine::Kind::kMap:
      return "mapped";
    case ToEngine::Kind::kRelease:
      return "given up";
    default:
      return "taken the new version of";
  }
}

}  // namespace

struct Door::Shared {
  Shared(std::string job, EngineRecord of, std::function<void()> on_news)
      : job_directory(std::move(job)),
        record(std::move(of)),
        wake(std::move(on_news)),
        own(make_private_directory()) {
    try {
      name_private_directory(own.path,
                             std::filesystem::absolute(job_directory).lexically_normal().string());
      record.socket = private_socket_path(own.path);
      listener = listen_at(record.socket);
      stop = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
      if (!stop.valid()) throw errno_error("let an engine attach", "eventfd", errno);
      bury_engine_records(job_directory, record);
      write_engine_record(job_directory, record);
    } catch (...) {
      remove_private_directory(own.path);
      throw;
    }
    thread = std::thread([this] { listen(); });
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  Shared(Shared&&) = delete;
  Shared& operator=(Shared&&) = delete;
  ~Shared() {
    const uint64_t one = 1;
    static_cast<void>(::write(stop.get(), &one, sizeof(one)));
    thread.join();
    remove_engine_record(job_directory, record);
    remove_private_directory(own.path);
  }

  /// Who has come to the door and has not said who it is.
  struct Guest {
    std::unique_ptr<Channel> channel;
    int pid = 0;
    Deadline patience{kSlowestHello};
  };

  // On the thread
  void listen();
  void take_in();
  void look_at(Guest& guest);
  void let_in(Guest& guest, const Frame& frame);
  void hear();
  void take(const Frame& frame);
  void take_withdrawal();
  void note_loss(const std::string& why);

  // On the main thread
  [[nodiscard]] bool is_here() const {
    return state == State::kGreeted || state == State::kAttached || state == State::kSealed;
  }
  [[nodiscard]] std::string describe() const;
  [[nodiscard]] std::string who() const;
  [[nodiscard]] Error lost_error() const;
  [[nodiscard]] bool is_lost_since(uint64_t number) const {
    return !is_here() || engine_number != number;
  }
  void send(const ToEngine& message, std::span<const int> fds, const Deadline& deadline,
            WaitMonitor& monitor);
  void send_to(const std::shared_ptr<Channel>& to, const ToEngine& message,
               std::span<const int> fds, const Deadline& deadline, WaitMonitor& monitor) {
    const std::lock_guard lock_send(send_mutex);
    to->send(encode(message), fds, deadline, monitor);
  }

  const std::string job_directory;
  EngineRecord record;
  const std::function<void()> wake;
  const PrivateDirectory own;
  UniqueFd listener;
  UniqueFd stop;
  OwnPage page;

  mutable std::mutex mutex;  ///< Of all below.
  State state = State::kAbsent;
  std::shared_ptr<Channel> channel;
  uint64_t engine_number = 0;  ///< How many have come.
  ToRank hello;
  int pid = 0;
  std::string lost_at;
  std::string why_lost;
  std::optional<ToRank> seal;
  bool ready = false;
  bool in_command = false;  ///< Its consent is in use.
  EngineWish wish = EngineWish::kNone;
  uint64_t asked = 0;
  uint64_t acked = 0;
  std::optional<Error> ack_error;  ///< Of the last that was answered.
  std::string kept;
  std::optional<Error> end;  ///< That the engine is to be told of.

  std::mutex send_mutex;      ///< One frame at a time.
  std::vector<Guest> guests;  ///< The thread's.
  std::thread thread;
};

// ---- The thread

void Door::Shared::listen() {
  while (true) {
    std::shared_ptr<Channel> engine;
    {
      const std::lock_guard guard(mutex);
      engine = channel;
    }
    std::vector<pollfd> polls{{stop.get(), POLLIN, 0},
                              {engine ? engine->fd() : -1, POLLIN, 0},
                              {listener.get(), POLLIN, 0}};
    for (const auto& guest : guests) polls.push_back({guest.channel->fd(), POLLIN, 0});
    // A look from time to time: the main thread hangs up as well, and guests grow old.
    constexpr int kLookMs = 100;
    ::poll(polls.data(), polls.size(), kLookMs);
    if (polls[0].revents != 0) return;
    if (polls[1].revents != 0) hear();
    for (auto& guest : guests) look_at(guest);
    std::erase_if(guests, [](const Guest& guest) { return !guest.channel; });
    if (polls[2].revents != 0) take_in();
  }
}

void Door::Shared::take_in() {
  UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) return;
  const int from = peer_of(socket);
  if (from == 0 || guests.size() >= kMostAtTheDoor) return;
  guests.push_back({std::make_unique<Channel>(std::move(socket)), from});
}

void Door::Shared::look_at(Guest& guest) {
  try {
    if (const auto frame = guest.channel->receive()) {
      let_in(guest, *frame);
      guest.channel.reset();
    } else if (guest.patience.expired()) {
      guest.channel.reset();
    }
  } catch (const Error& error) {
    guest.channel.reset();
  }
}

/// A guest that has said who it is becomes the rank's engine, unless there is one.
void Door::Shared::let_in(Guest& guest, const Frame& frame) {
  ToEngine answer;
  answer.kind = ToEngine::Kind::kRefused;
  NoMonitor nobody;
  try {
    const ToRank message = decode_to_rank(frame.text);
    if (message.kind != ToRank::Kind::kHello) throw request_error("an engine first says hello");
    if (message.protocol != kProtocolVersion) {
      throw request_error(
          fmt::format("the library of \"{}\" ({}) speaks protocol {}, the job speaks {}",
                      message.name, message.build, message.protocol, kProtocolVersion),
          "use the library and the awex-colocate of one version");
    }
    if (message.role != record.role) {
      throw request_error(fmt::format("\"{}\" attaches as {}, and this is the {}'s door",
                                      message.name, role_name(message.role),
                                      role_name(record.role)));
    }
    {
      const std::lock_guard guard(mutex);
      if (is_here()) {
        throw request_error(fmt::format("{} is attached to rank {} as its {} engine already",
                                        describe(), record.rank, role_name(record.role)),
                            "end it first, or give this engine another GPU");
      }
      hello = message;
      pid = guest.pid;
      channel = std::move(guest.channel);
      state = State::kGreeted;
      ++engine_number;
      seal.reset();
      ready = in_command = false;
      wish = EngineWish::kNone;
      asked = acked = 0;
      ack_error.reset();
    }
    if (wake) wake();
    return;
  } catch (const Error& error) {
    answer.error = error;
  }
  guest.channel->send(encode(answer), {}, Deadline(kSlowestReader), nobody);
}

void Door::Shared::hear() {
  std::shared_ptr<Channel> engine;
  {
    const std::lock_guard guard(mutex);
    engine = channel;
  }
  if (!engine) return;
  try {
    while (const auto frame = engine->receive()) take(*frame);
  } catch (const Error& error) {
    const std::lock_guard guard(mutex);
    if (channel == engine) note_loss(error.code() == ExitCode::kPeerLost ? "" : error.what());
  }
  if (wake) wake();
}

/// The mutex is held.
void Door::Shared::note_loss(const std::string& why) {
  channel.reset();
  state = State::kLost;
  lost_at = utc_now();
  why_lost = why;
  ready = in_command = false;
  wish = EngineWish::kNone;
}

void Door::Shared::take(const Frame& frame) {
  ToRank message = decode_to_rank(frame.text);
  switch (message.kind) {
    case ToRank::Kind::kHello:
      throw request_error("it has said hello already");
    case ToRank::Kind::kWithdraw:
      return take_withdrawal();
    case ToRank::Kind::kKeep: {
      auto bytes = read_kept(message, frame.fds);
      const std::lock_guard guard(mutex);
      kept = std::move(bytes);
      return;
    }
    default:
      break;
  }
  const std::lock_guard guard(mutex);
  switch (message.kind) {
    case ToRank::Kind::kSeal:
      seal = std::move(message);
      return;
    case ToRank::Kind::kReady:
      ready = true;
      wish = message.wish;
      return;
    case ToRank::Kind::kAck:
      ++acked;
      ack_error = message.error;
      return;
    case ToRank::Kind::kDetach:
      return note_loss("it has detached");
    default:
      return;
  }
}

/// A consent that is in use ends with the command.
void Door::Shared::take_withdrawal() {
  std::shared_ptr<Channel> engine;
  {
    const std::lock_guard guard(mutex);
    if (!ready || in_command) return;
    ready = false;
    wish = EngineWish::kNone;
    engine = channel;
  }
  if (!engine) return;
  ToEngine answer;
  answer.kind = ToEngine::Kind::kWithdrawn;
  NoMonitor nobody;
  send_to(engine, answer, {}, Deadline(kSlowestReader), nobody);
}

// ---- The main thread

/// The mutex is held.
std::string Door::Shared::describe() const {
  if (engine_number == 0) return "no engine";
  return fmt::format("{} (pid {})", hello.name, pid);
}

/// "the inference engine of rank 3, vllm 0.32.0 (pid 4711),"
std::string Door::Shared::who() const {
  return fmt::format("the {} engine of rank {}, {},", role_name(record.role), record.rank,
                     describe());
}

/// The mutex is held.
Error Door::Shared::lost_error() const {
  const auto hint = fmt::format("attach it again with --job {}", job_directory);
  if (engine_number == 0 || lost_at.empty()) {
    return {ExitCode::kPeerLost,
            fmt::format("no {} engine is attached to rank {}", role_name(record.role), record.rank),
            hint};
  }
  return {
      ExitCode::kPeerLost,
      fmt::format("{} is lost since {}{}", who(), lost_at, why_lost.empty() ? "" : ": " + why_lost),
      hint};
}

void Door::Shared::send(const ToEngine& message, std::span<const int> fds, const Deadline& deadline,
                        WaitMonitor& monitor) {
  std::shared_ptr<Channel> engine;
  {
    const std::lock_guard guard(mutex);
    if (!is_here() || !channel) throw lost_error();
    engine = channel;
  }
  try {
    send_to(engine, message, fds, deadline, monitor);
  } catch (const Error& error) {
    // A part of a frame may be on its way: nothing could follow it.
    const std::lock_guard guard(mutex);
    const bool is_gone = error.code() == ExitCode::kPeerLost;
    if (channel == engine) note_loss(is_gone ? "" : error.what());
    if (is_gone) throw lost_error();
    throw;
  }
}

Door::Door(const std::string& job_directory, EngineRecord record, std::function<void()> wake)
    : shared_(std::make_unique<Shared>(job_directory, std::move(record), std::move(wake))) {}

Door::~Door() {
  ToEngine end;
  end.kind = ToEngine::Kind::kEnd;
  end.error = shared_->end;
  tell(end);
}

void Door::end_with(const Error& error) { shared_->end = error; }

Door::State Door::state() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->state;
}

ToRank Door::hello() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->hello;
}

std::string Door::describe() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->describe();
}

int Door::pid() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->pid;
}

std::string Door::lost_at() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->lost_at;
}

bool Door::is_ready() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->ready;
}

EngineWish Door::wish() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->ready && !shared_->in_command ? shared_->wish : EngineWish::kNone;
}

ControlPage& Door::page() { return shared_->page.page(); }

Error Door::lost_error() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->lost_error();
}

std::string Door::kept() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->kept;
}

namespace {

/// Tells others, from time to time, that a wait which has no end of its own goes on.
class Patience {
 public:
  Patience(std::string what, WaitMonitor& monitor) : what_(std::move(what)), monitor_(monitor) {}

  void tell() {
    if (!told_ || next_.expired()) monitor_.progressed({what_, "", 0, 0, false});
    if (!told_ || next_.expired()) next_ = Deadline(kTellInterval);
    told_ = true;
  }
  void end() {
    if (told_) monitor_.progressed({what_, "", 0, 0, true});
  }

 private:
  std::string what_;
  WaitMonitor& monitor_;
  Deadline next_{kTellInterval};
  bool told_ = false;
};

}  // namespace

void Door::await_hello(Seconds patience, WaitMonitor& monitor) {
  const Deadline deadline(patience);
  const auto& record = shared_->record;
  Patience going_on(fmt::format("waiting for an engine ({})", role_name(record.role)), monitor);
  for (uint64_t spins = 0;; ++spins) {
    {
      const std::lock_guard guard(shared_->mutex);
      if (shared_->is_here()) break;
    }
    monitor.poll();
    if (deadline.expired()) {
      throw Error(ExitCode::kDeadline,
                  fmt::format("no {} engine has attached to rank {} (host {}, device {}) in {}",
                              role_name(record.role), record.rank, record.host, record.device,
                              format_seconds(patience.count())),
                  fmt::format("attach one with --job {}; --attach-timeout gives it longer",
                              shared_->job_directory));
    }
    going_on.tell();
    pause_in_wait(spins);
  }
  going_on.end();
}

void Door::welcome(ToEngine message, std::string_view kept, const Deadline& deadline,
                   WaitMonitor& monitor) {
  message.kind = ToEngine::Kind::kWelcome;
  message.kept_bytes = kept.size();
  std::vector<int> fds{shared_->page.fd()};
  UniqueFd blob;
  if (!kept.empty()) {
    blob = file_of(kept);
    fds.push_back(blob.get());
  }
  {
    // First: what it says next may be there before the send returns.
    const std::lock_guard guard(shared_->mutex);
    if (shared_->state == State::kGreeted) shared_->state = State::kAttached;
  }
  shared_->send(message, fds, deadline, monitor);
}

void Door::refuse(const Error& error) noexcept {
  try {
    ToEngine message;
    message.kind = ToEngine::Kind::kRefused;
    message.error = error;
    NoMonitor nobody;
    shared_->send(message, {}, Deadline(kSlowestReader), nobody);
    const std::lock_guard guard(shared_->mutex);
    shared_->note_loss("it was refused: " + std::string(error.what()));
  } catch (const std::exception& failure) {
    log::warning(failure.what());
  }
}

std::optional<ToRank> Door::next_seal() {
  const std::lock_guard guard(shared_->mutex);
  return std::exchange(shared_->seal, std::nullopt);
}

ToRank Door::await_seal(Seconds patience, WaitMonitor& monitor) {
  const Deadline deadline(patience);
  Patience going_on(fmt::format("an engine loads ({})", role_name(shared_->record.role)), monitor);
  for (uint64_t spins = 0;; ++spins) {
    if (auto seal = next_seal()) {
      going_on.end();
      return *seal;
    }
    {
      const std::lock_guard guard(shared_->mutex);
      if (!shared_->is_here() || shared_->state == State::kGreeted) throw shared_->lost_error();
    }
    monitor.poll();
    if (deadline.expired()) {
      const std::lock_guard guard(shared_->mutex);
      throw Error(ExitCode::kDeadline,
                  fmt::format("{} has not declared and sealed its tensors in {}", shared_->who(),
                              format_seconds(patience.count())),
                  "--attach-timeout gives it longer");
    }
    going_on.tell();
    pause_in_wait(spins);
  }
}

void Door::answer_seal(const std::optional<Error>& error, const Deadline& deadline,
                       WaitMonitor& monitor) {
  ToEngine message;
  message.kind = error ? ToEngine::Kind::kRefused : ToEngine::Kind::kSealed;
  message.error = error;
  if (!error) {
    const std::lock_guard guard(shared_->mutex);
    if (shared_->state == State::kAttached) shared_->state = State::kSealed;
  }
  shared_->send(message, {}, deadline, monitor);
}

void Door::await_ready(const Deadline& deadline, WaitMonitor& monitor,
                       const std::function<void()>& meanwhile) {
  for (uint64_t spins = 0;; ++spins) {
    {
      const std::lock_guard guard(shared_->mutex);
      if (!shared_->is_here()) throw shared_->lost_error();
      if (shared_->state == State::kSealed && shared_->ready) {
        shared_->in_command = true;
        return;
      }
    }
    monitor.poll();
    if (monitor.overdue(deadline)) {
      const std::lock_guard guard(shared_->mutex);
      throw Error(ExitCode::kDeadline,
                  fmt::format("{} is busy: it has called nothing that consents for {}",
                              shared_->who(), format_seconds(deadline.allowed().count())),
                  fmt::format("see what it does (py-spy dump --pid {}); it consents in hand_over, "
                              "take_back, wait, release or ready",
                              shared_->pid));
    }
    if (meanwhile) meanwhile();
    pause_in_wait(spins);
  }
}

void Door::ask(const ToEngine& message, std::span<const int> fds, const Deadline& deadline,
               WaitMonitor& monitor) {
  uint64_t engine = 0;
  uint64_t number = 0;
  {
    const std::lock_guard guard(shared_->mutex);
    engine = shared_->engine_number;
    number = ++shared_->asked;
  }
  shared_->send(message, fds, deadline, monitor);
  for (uint64_t spins = 0;; ++spins) {
    {
      const std::lock_guard guard(shared_->mutex);
      if (shared_->is_lost_since(engine)) throw shared_->lost_error();
      if (shared_->acked >= number) {
        if (shared_->ack_error) {
          throw Error(*shared_->ack_error).about_tag(tag_name(message.tag));
        }
        return;
      }
    }
    monitor.poll();
    if (monitor.overdue(deadline)) {
      const std::lock_guard guard(shared_->mutex);
      throw Error(ExitCode::kDeadline,
                  fmt::format("{} has not {} its {} for {}", shared_->who(), deed_of(message),
                              tag_name(message.tag), format_seconds(deadline.allowed().count())),
                  fmt::format("see what it does (py-spy dump --pid {})", shared_->pid));
    }
    pause_in_wait(spins);
  }
}

void Door::tell(const ToEngine& message) noexcept {
  try {
    {
      const std::lock_guard guard(shared_->mutex);
      if (!shared_->is_here()) return;
      if (message.kind == ToEngine::Kind::kOver) {
        // One that is in no call would take it for the end of what it asks for next.
        if (!shared_->ready) return;
        // First: its next consent may be there before the send returns.
        shared_->ready = shared_->in_command = false;
        shared_->wish = EngineWish::kNone;
      }
    }
    NoMonitor nobody;
    shared_->send(message, {}, Deadline(kSlowestReader), nobody);
  } catch (const std::exception& error) {
    log::warning(error.what());
  }
}

}  // namespace awex::attach
