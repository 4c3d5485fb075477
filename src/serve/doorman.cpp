#include "serve/doorman.hpp"

#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <exception>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "base/wait.hpp"

namespace awex {
namespace {

using Clock = std::chrono::steady_clock;

/// From being taken in to the end of the request.
constexpr auto kSlowestRequest = std::chrono::seconds(5);
/// A client that has been told all and reads nothing for as long has lost its answer.
constexpr auto kSlowestReader = std::chrono::seconds(5);
/// Others may take the place of one that has read nothing for as long.
constexpr auto kSlowReader = std::chrono::milliseconds(100);
/// How long nobody is taken in where descriptors have run out.
constexpr auto kExhausted = std::chrono::milliseconds(50);
/// kPhase events are dropped for a client that has so many bytes still to read.
constexpr size_t kMostUnread = 256 << 10;
/// That wait; some places are left for clients who ask how the job is.
constexpr size_t kMostCommands = Doorman::kMostClients - 16;
/// Connections that nobody has looked at yet. Others wait in their connect: it is soon their turn,
/// also where many of these are a flood's.
constexpr int kMostAtTheDoor = 128;
/// Taken in at once, before others are served.
constexpr int kMostArrivals = 64;

/// A descriptor that makes a poll return. Its writer may be a signal handler.
class Bell {
 public:
  Bell() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!fd_.valid()) throw errno_error("serve clients", "eventfd", errno);
  }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void ring() const noexcept {
    const int saved = errno;
    const uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(fd_.get(), &one, sizeof(one));
    errno = saved;
  }
  void silence() const noexcept {
    uint64_t count = 0;
    [[maybe_unused]] const auto read = ::read(fd_.get(), &count, sizeof(count));
  }

 private:
  UniqueFd fd_;
};

UniqueFd listen_at(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    throw runtime_error(fmt::format("the path of the job's socket \"{}\" is too long", path));
  }
  path.copy(static_cast<char*>(address.sun_path), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) throw errno_error("serve clients", "socket", errno);
  const auto attempt = fmt::format("serve clients at \"{}\"", path);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    throw errno_error(attempt, "bind", errno);
  }
  if (::listen(socket.get(), kMostAtTheDoor) != 0) throw errno_error(attempt, "listen", errno);
  return socket;
}

Event done(const Error& error) {
  Event event;
  event.exit_code = error.code();
  event.error = error;
  return event;
}

/// In milliseconds for poll: rounded up, -1 for no end.
int poll_timeout(Clock::time_point until) {
  if (until == Clock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, std::numeric_limits<int>::max()));
}

Error other_user(uid_t uid) {
  return request_error(
      fmt::format("refused: this job belongs to another user (uid {}, not {})", ::geteuid(), uid),
      "only the user who has started a job may use it");
}

}  // namespace

struct Doorman::State {
  State(JobDirectory& directory, StatusBoard& status_board)
      : board(status_board), listener(listen_at(directory.record().socket)) {
    spare = open_spare();
    thread = start();
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  State(State&&) = delete;
  State& operator=(State&&) = delete;
  ~State() {
    ending = true;
    knock.ring();
    thread.join();
  }

  enum class Stage : uint8_t {
    kAsking,   ///< Its request has not come yet, or not all of it.
    kWaiting,  ///< Its command waits or runs.
    kLeaving,  ///< Told all; it goes when it has been sent.
  };
  struct Client {
    UniqueFd socket;
    Stage stage = Stage::kAsking;
    std::string request;
    std::string unread;  ///< To be sent, from `sent` on.
    size_t sent = 0;
    Clock::time_point since;  ///< Of the stage, or of the last that it has read.

    [[nodiscard]] size_t unsent() const { return unread.size() - sent; }
  };
  std::thread start();
  void serve();
  [[nodiscard]] std::vector<pollfd> what_to_wait_for(std::vector<uint64_t>& ids,
                                                     Clock::time_point& until);
  void hear(uint64_t id, short happened);
  void read_request(uint64_t id);
  void answer(uint64_t id, std::string_view line);
  void take_order(uint64_t id, const ClientRequest& request);
  void take_in_arrivals();
  [[nodiscard]] bool take_in_one();
  void take_in(UniqueFd socket);
  void refuse_without_descriptors();
  [[nodiscard]] bool make_room();
  void drop_overdue();
  void send(Client& client);
  void put(uint64_t id, Client& client, const Event& event);
  void drop(uint64_t id);
  Visit take(size_t at);
  void note_queue();
  static UniqueFd open_spare() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }
  static void refuse(const UniqueFd& socket, const Error& error);

  StatusBoard& board;
  UniqueFd listener;
  UniqueFd spare;  ///< To be given up for a client that is to be told that there are no more.
  Bell knock;      ///< For the thread.
  Bell order;      ///< For `next`.
  std::atomic<bool> ending{false};
  std::atomic<bool> woken{false};
  std::atomic<uint64_t> running{0};  ///< The client whose command runs; 0 for none.
  std::atomic<bool> cancelled{false};

  std::mutex mutex;
  std::condition_variable sent_all;
  std::map<uint64_t, Client> clients;  ///< By number, which is their order of coming.
  uint64_t last_client = 0;
  std::deque<Visit> orders;
  bool busy = false;                ///< A command runs, whether or not its client is still here.
  bool running_cancels = false;     ///< Its client wants it given up when it goes away.
  std::optional<Error> closed;      ///< What everyone who comes is told.
  Clock::time_point no_arrivals{};  ///< Until then nobody is taken in.

  std::thread thread;
};

/// The thread leaves signals to the others.
std::thread Doorman::State::start() {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread started([this] { serve(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

void Doorman::State::serve() {
  std::vector<uint64_t> ids;
  while (!ending) {
    Clock::time_point until;
    auto polls = what_to_wait_for(ids, until);
    if (::poll(polls.data(), polls.size(), poll_timeout(until)) < 0) continue;
    if (polls[0].revents != 0) knock.silence();
    for (size_t i = 0; i < ids.size(); ++i) {
      if (polls[i + 2].revents != 0) hear(ids[i], polls[i + 2].revents);
    }
    if (polls[1].revents != 0) take_in_arrivals();
    drop_overdue();
  }
}

std::vector<pollfd> Doorman::State::what_to_wait_for(std::vector<uint64_t>& ids,
                                                     Clock::time_point& until) {
  const std::lock_guard lock(mutex);
  until = Clock::time_point::max();
  const bool takes_in = Clock::now() >= no_arrivals;
  if (!takes_in) until = no_arrivals;
  std::vector<pollfd> polls{{knock.fd(), POLLIN, 0}, {takes_in ? listener.get() : -1, POLLIN, 0}};
  ids.clear();
  for (const auto& [id, client] : clients) {
    short events = 0;
    if (client.stage == Stage::kAsking) {
      events = POLLIN;
      until = std::min(until, client.since + kSlowestRequest);
    }
    if (client.unsent() > 0) events = static_cast<short>(events | POLLOUT);
    if (client.stage == Stage::kLeaving) until = std::min(until, client.since + kSlowestReader);
    polls.push_back({client.socket.get(), events, 0});
    ids.push_back(id);
  }
  return polls;
}

void Doorman::State::hear(uint64_t id, short happened) {
  if ((happened & POLLIN) != 0) return read_request(id);
  const std::lock_guard lock(mutex);
  const auto found = clients.find(id);
  if (found == clients.end()) return;
  if ((happened & (POLLHUP | POLLERR | POLLNVAL)) != 0) return drop(id);
  send(found->second);
  if (found->second.unsent() > 0) return;
  if (found->second.stage == Stage::kLeaving) return drop(id);
  if (closed) sent_all.notify_all();
}

void Doorman::State::read_request(uint64_t id) {
  std::string line;
  {
    const std::lock_guard lock(mutex);
    const auto found = clients.find(id);
    if (found == clients.end() || found->second.stage != Stage::kAsking) return;
    auto& client = found->second;
    std::array<char, kLongestRequest> piece;
    const auto room = kLongestRequest - client.request.size();
    const auto count = ::recv(client.socket.get(), piece.data(), room, 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) return drop(id);
    const std::string_view news(piece.data(), static_cast<size_t>(count));
    const auto end = news.find('\n');
    client.request += news.substr(0, end);
    if (end == std::string_view::npos) {
      if (client.request.size() < kLongestRequest) return;
      put(id, client,
          done(request_error(fmt::format("the request is longer than {} bytes", kLongestRequest))));
      return;
    }
    line = std::move(client.request);
  }
  answer(id, line);
}

void Doorman::State::answer(uint64_t id, std::string_view line) {
  Event event;
  try {
    const auto request = decode_request(line);
    if (request.errand != Errand::kStatus) return take_order(id, request);
    event.status = render_status_json(board.read());
  } catch (const Error& error) {
    event = done(error);
  } catch (const std::exception& error) {
    event = done(runtime_error(fmt::format("cannot take the request: {}", error.what())));
  }
  const std::lock_guard lock(mutex);
  const auto found = clients.find(id);
  if (found != clients.end()) put(id, found->second, closed ? done(*closed) : event);
}

void Doorman::State::take_order(uint64_t id, const ClientRequest& request) {
  const std::lock_guard lock(mutex);
  const auto found = clients.find(id);
  if (found == clients.end()) return;
  auto& client = found->second;
  if (closed) return put(id, client, done(*closed));
  if (orders.size() >= kMostCommands) {
    return put(id, client,
               done(runtime_error(fmt::format("refused: {} commands wait already", orders.size()),
                                  "wait for them, or see what holds them up: awex-colocate status "
                                  "--job DIR")));
  }
  client.stage = Stage::kWaiting;
  Event queued;
  queued.kind = Event::Kind::kQueued;
  queued.ahead = orders.size() + (busy ? 1 : 0);
  orders.push_back({id, request});
  put(id, client, queued);
  note_queue();
  order.ring();
}

void Doorman::State::take_in_arrivals() {
  for (int i = 0; i < kMostArrivals; ++i) {
    if (!take_in_one()) return;
  }
}

/// Whether there may be more.
bool Doorman::State::take_in_one() {
  UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (socket.valid()) {
    take_in(std::move(socket));
    return true;
  }
  if (errno == EINTR || errno == ECONNABORTED) return true;
  if (errno != EAGAIN && errno != EWOULDBLOCK) refuse_without_descriptors();
  return false;
}

void Doorman::State::take_in(UniqueFd socket) {
  ucred other{};
  socklen_t size = sizeof(other);
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &other, &size) != 0) return;
  if (other.uid != ::geteuid()) return refuse(socket, other_user(other.uid));
  uint64_t id = 0;
  {
    const std::lock_guard lock(mutex);
    if (clients.size() >= kMostClients && !make_room()) {
      return refuse(socket, runtime_error(fmt::format("refused: the job has {} clients already",
                                                      clients.size()),
                                          "wait until some of them have their answers"));
    }
    id = ++last_client;
    auto& client = clients[id];
    client.socket = std::move(socket);
    client.since = Clock::now();
  }
  read_request(id);
}

/// Where descriptors have run out, the listener would make every poll return at once.
void Doorman::State::refuse_without_descriptors() {
  const auto failure = errno_error("take a client in", "accept", errno);
  spare.reset();
  const UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (socket.valid()) refuse(socket, failure);
  const std::lock_guard lock(mutex);
  no_arrivals = Clock::now() + kExhausted;
}

/// Lets the one go that has been longest without a request, or else without reading its answer.
bool Doorman::State::make_room() {
  const auto enough = Clock::now() - kSlowReader;
  auto slowest = clients.end();
  for (auto client = clients.begin(); client != clients.end(); ++client) {
    const auto stage = client->second.stage;
    const auto since = client->second.since;
    if (stage == Stage::kAsking) {
      slowest = client;
      break;
    }
    const bool is_slow = stage == Stage::kLeaving && since < enough;
    if (is_slow && (slowest == clients.end() || since < slowest->second.since)) slowest = client;
  }
  if (slowest == clients.end()) return false;
  drop(slowest->first);
  return true;
}

void Doorman::State::drop_overdue() {
  if (!spare.valid()) spare = open_spare();
  const std::lock_guard lock(mutex);
  const auto now = Clock::now();
  std::vector<uint64_t> overdue;
  for (auto& [id, client] : clients) {
    if (client.stage == Stage::kAsking && now >= client.since + kSlowestRequest) {
      overdue.push_back(id);
    }
    if (client.stage == Stage::kLeaving && now >= client.since + kSlowestReader) {
      overdue.push_back(id);
    }
  }
  for (const auto id : overdue) drop(id);
}

void Doorman::State::send(Client& client) {
  while (client.unsent() > 0) {
    const auto count = ::send(client.socket.get(), client.unread.data() + client.sent,
                              client.unsent(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0) {
      if (errno == EINTR) continue;
      break;  // who has gone away is seen by poll
    }
    client.sent += static_cast<size_t>(count);
    client.since = Clock::now();
  }
  if (client.unsent() == 0) {
    client.unread = {};
    client.sent = 0;
  }
}

/// Sends what can be sent now; the thread sends the rest. After kDone the client may be gone.
void Doorman::State::put(uint64_t id, Client& client, const Event& event) {
  if (client.stage == Stage::kLeaving) return;
  if (event.kind == Event::Kind::kPhase && client.unsent() > kMostUnread) return;
  client.unread.erase(0, std::exchange(client.sent, 0));
  client.unread += encode(event);
  if (event.kind == Event::Kind::kDone) {
    client.stage = Stage::kLeaving;
    client.since = Clock::now();
  }
  send(client);
  if (client.unsent() > 0) {
    knock.ring();
  } else if (client.stage == Stage::kLeaving) {
    drop(id);
  }
}

/// Ends a connection. A command stays, unless its client has wanted otherwise.
void Doorman::State::drop(uint64_t id) {
  const auto found = clients.find(id);
  const auto stage = found->second.stage;
  // A poll of the thread's would keep a socket open that is only closed.
  ::shutdown(found->second.socket.get(), SHUT_RDWR);
  clients.erase(found);
  if (stage == Stage::kWaiting) {
    if (running == id && running_cancels) cancelled = true;
    const auto before = orders.size();
    orders.erase(std::remove_if(orders.begin(), orders.end(),
                                [&](const Visit& waiting) {
                                  return waiting.client == id &&
                                         waiting.request.cancel_on_disconnect;
                                }),
                 orders.end());
    if (orders.size() != before) note_queue();
  }
  if (closed) sent_all.notify_all();
}

/// The visit is the one that runs from now on.
Visit Doorman::State::take(size_t at) {
  const Visit visit = orders.at(at);
  orders.erase(orders.begin() + static_cast<std::ptrdiff_t>(at));
  note_queue();
  busy = true;
  running_cancels = visit.request.cancel_on_disconnect;
  cancelled = false;
  running = visit.client;
  return visit;
}

void Doorman::State::note_queue() {
  board.update([this](JobStatus& status) { status.queued = orders.size(); });
}

/// One line, as far as it goes.
void Doorman::State::refuse(const UniqueFd& socket, const Error& error) {
  const auto line = encode(done(error));
  [[maybe_unused]] const auto sent =
      ::send(socket.get(), line.data(), line.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

Doorman::Doorman(JobDirectory& directory, StatusBoard& board)
    : state_(std::make_unique<State>(directory, board)) {}

Doorman::~Doorman() = default;

std::optional<Visit> Doorman::next(Seconds longest) {
  const auto until = Clock::now() + as_duration(longest);
  while (true) {
    state_->order.silence();
    if (state_->woken.exchange(false)) return std::nullopt;
    {
      const std::lock_guard lock(state_->mutex);
      if (!state_->orders.empty()) return state_->take(0);
    }
    if (Clock::now() >= until) return std::nullopt;
    pollfd ready{state_->order.fd(), POLLIN, 0};
    ::poll(&ready, 1, poll_timeout(until));
  }
}

std::optional<Visit> Doorman::next_stop() {
  const std::lock_guard lock(state_->mutex);
  auto& orders = state_->orders;
  const auto stop = std::find_if(orders.begin(), orders.end(), [](const Visit& visit) {
    return visit.request.errand == Errand::kStop;
  });
  if (stop == orders.end()) return std::nullopt;
  return state_->take(static_cast<size_t>(stop - orders.begin()));
}

void Doorman::wake() noexcept {
  state_->woken = true;
  state_->order.ring();
}

void Doorman::tell(uint64_t client, const Event& event) {
  const std::lock_guard lock(state_->mutex);
  if (event.kind == Event::Kind::kDone && state_->running == client) {
    state_->running = 0;
    state_->busy = false;
    state_->cancelled = false;
  }
  const auto found = state_->clients.find(client);
  if (found != state_->clients.end()) state_->put(client, found->second, event);
}

bool Doorman::is_cancelled(uint64_t client) const {
  return state_->running == client && state_->cancelled;
}

void Doorman::close(const Error& error, Seconds longest) {
  std::unique_lock lock(state_->mutex);
  state_->closed = error;
  state_->orders.clear();
  state_->note_queue();
  std::vector<uint64_t> ids;
  for (const auto& [id, client] : state_->clients) {
    if (client.stage != State::Stage::kLeaving && id != state_->running) ids.push_back(id);
  }
  for (const auto id : ids) state_->put(id, state_->clients.at(id), done(error));
  state_->sent_all.wait_for(lock, longest, [this] {
    return std::none_of(state_->clients.begin(), state_->clients.end(),
                        [](const auto& entry) { return entry.second.unsent() > 0; });
  });
}

}  // namespace awex
