#include "attach/door_thread.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <utility>

#include "base/utc_now.hpp"

namespace awex::attach {
namespace {

constexpr int kMostAtTheDoor = 8;

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

/// The process at the other end, of this user; 0 for others.
int peer_of(const UniqueFd& socket) {
  ucred other{};
  socklen_t size = sizeof(other);
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &other, &size) != 0) return 0;
  return other.uid == ::geteuid() ? other.pid : 0;
}

}  // namespace

Door::Shared::Shared(std::string job, EngineRecord of, std::function<void()> on_news)
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

Door::Shared::~Shared() {
  const uint64_t one = 1;
  static_cast<void>(::write(stop.get(), &one, sizeof(one)));
  thread.join();
  remove_engine_record(job_directory, record);
  remove_private_directory(own.path);
}

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
  if (from == 0) return refuse_stranger(std::move(socket));
  if (guests.size() >= kMostAtTheDoor) return;
  guests.push_back({std::make_unique<Channel>(std::move(socket)), from});
}

void Door::Shared::refuse_stranger(UniqueFd socket) {
  ToEngine answer;
  answer.kind = ToEngine::Kind::kRefused;
  answer.error = request_error("the job belongs to another user",
                               "only the user who has started a job may attach to it");
  NoMonitor nobody;
  try {
    Channel(std::move(socket)).send(encode(answer), {}, Deadline(Seconds(1)), nobody);
  } catch (const Error&) {  // It does not listen.
  }
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
      loan = {};
      booked.clear();
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
    while (auto frame = engine->receive()) take(*frame);
  } catch (const Error& error) {
    const bool is_gone = error.code() == ExitCode::kPeerLost;
    {
      const std::lock_guard guard(mutex);
      if (channel == engine) note_loss(is_gone ? "" : error.what());
    }
    if (!is_gone) say_why(engine, error);  // before the connection ends, which is here
  }
  if (wake) wake();
}

/// The last words to an engine that is let go, if it listens.
void Door::Shared::say_why(const std::shared_ptr<Channel>& engine, const Error& error) {
  constexpr Seconds kPatience{1};
  ToEngine last;
  last.kind = ToEngine::Kind::kEnd;
  last.error = error;
  NoMonitor nobody;
  try {
    send_to(engine, last, {}, Deadline(kPatience), nobody);
  } catch (const Error&) {  // It sees that the connection has ended.
  }
}

void Door::Shared::note_loss(const std::string& why) {
  channel.reset();
  state = State::kLost;
  lost_who = who();
  lost_at = utc_now();
  why_lost = why;
  has_detached = false;
  ready = in_command = false;
  wish = EngineWish::kNone;
  loan = {};
  booked.clear();
}

void Door::Shared::take(Frame& frame) {
  ToRank message = decode_to_rank(frame.text);
  switch (message.kind) {
    case ToRank::Kind::kHello:
      throw request_error("it has said hello already");
    case ToRank::Kind::kWithdraw:
      return take_withdrawal();
    case ToRank::Kind::kLend:
      return take_loan(std::move(message), frame.fds);
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
    case ToRank::Kind::kBook:
      booked[message.name] = message.booked_bytes;
      if (booked.size() > kMostBooked) throw request_error("it books too many kinds of memory");
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
      note_loss("");
      has_detached = true;
      return;
    default:
      return;
  }
}

void Door::Shared::take_loan(ToRank message, std::vector<UniqueFd>& fds) {
  const auto needed = std::count_if(message.blocks.begin(), message.blocks.end(),
                                    [](const LentBlock& block) { return block.has_fd; });
  const std::lock_guard guard(mutex);
  if (message.begins) {
    loan = {};
    loan.tensors = std::move(message.declared.at(static_cast<size_t>(Tag::kWeights)));
  }
  if (static_cast<size_t>(needed) != fds.size() ||
      loan.lendings.size() + message.blocks.size() > kMostLentBlocks) {
    throw request_error(fmt::format("it lends {} blocks beside {}, with {} descriptors for {}",
                                    message.blocks.size(), loan.lendings.size(), fds.size(),
                                    needed));
  }
  auto next = fds.begin();
  for (const auto& block : message.blocks) {
    loan.lendings.push_back({block, block.has_fd ? std::move(*next++) : UniqueFd()});
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

}  // namespace awex::attach
