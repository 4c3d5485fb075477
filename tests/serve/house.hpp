#pragma once

#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <chrono>
#include <future>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/unique_fd.hpp"
#include "serve/client.hpp"
#include "serve/doorman.hpp"
#include "support/temporary_directory.hpp"

/// What tests of a job's door share: a job without ranks, and clients of all kinds.

namespace awex::test {

/// A job's directory and door.
struct House {
  TemporaryDirectory root;
  std::string path = (root.path() / "job").string();
  StatusBoard board;
  JobDirectory directory{path};
  Doorman doorman{directory, board};
};

inline ClientRequest update_request(bool cancel_on_disconnect = false) {
  ClientRequest request;
  request.errand = Errand::kUpdate;
  request.command.command = Command::kHandOver;
  request.cancel_on_disconnect = cancel_on_disconnect;
  return request;
}

inline Event done_event(ExitCode code = ExitCode::kOk) {
  Event event;
  event.exit_code = code;
  return event;
}

inline Event phase_event(const std::string& phase) {
  Event event;
  event.kind = Event::Kind::kPhase;
  event.phase = phase;
  return event;
}

/// Asks as the commands do.
inline Event ask(const std::string& directory, const ClientRequest& request,
                 std::vector<Event>* heard = nullptr, Seconds patience = Seconds(5)) {
  NoMonitor nobody;
  return ask_job(
      directory, request, patience,
      [heard](const Event& event) {
        if (heard != nullptr) heard->push_back(event);
      },
      nobody);
}

template <class... Arguments>
std::future<Event> ask_beside(Arguments... arguments) {
  return std::async(std::launch::async, [arguments...] { return ask(arguments...); });
}

/// A client that may break every rule of the protocol. Blocks, for 20 s at most.
class RawClient {
 public:
  explicit RawClient(const std::string& socket_path)
      : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    address_.sun_family = AF_UNIX;
    socket_path.copy(static_cast<char*>(address_.sun_path), sizeof(address_.sun_path) - 1);
    const timeval longest{20, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &longest, sizeof(longest));
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &longest, sizeof(longest));
  }

  [[nodiscard]] bool connect() {
    return ::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address_), sizeof(address_)) ==
           0;
  }
  /// Whether all could be sent.
  bool send(std::string_view text) {
    while (!text.empty()) {
      const auto count = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      text.remove_prefix(static_cast<size_t>(count));
    }
    return true;
  }
  /// All that comes until the other side closes.
  [[nodiscard]] std::string read_all() {
    std::string all;
    while (true) {
      char piece[4096];
      const auto count = ::recv(fd_.get(), piece, sizeof(piece), 0);
      if (count < 0 && errno != ECONNRESET) throw std::runtime_error("the other side hangs");
      if (count <= 0) return all;
      all.append(piece, static_cast<size_t>(count));
    }
  }
  /// Whether the other side has closed, or does in that time; what it has sent is read.
  [[nodiscard]] bool is_closed_within(std::chrono::milliseconds longest) {
    const auto until = std::chrono::steady_clock::now() + longest;
    while (true) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          until - std::chrono::steady_clock::now());
      if (left.count() <= 0) return false;
      pollfd ready{fd_.get(), POLLIN, 0};
      if (::poll(&ready, 1, static_cast<int>(left.count())) <= 0) continue;
      char piece[4096];
      if (::recv(fd_.get(), piece, sizeof(piece), 0) <= 0) return true;
    }
  }
  void finish_sending() { ::shutdown(fd_.get(), SHUT_WR); }
  void hang_up() { fd_.reset(); }

 private:
  UniqueFd fd_;
  sockaddr_un address_{};
};

/// One that has sent a request and reads nothing yet.
inline RawClient visitor(const House& house, const ClientRequest& request) {
  RawClient client(house.directory.record().socket);
  if (!client.connect() || !client.send(encode(request))) {
    throw std::runtime_error("the door is closed");
  }
  return client;
}

/// Of this process, all threads.
inline double processor_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

template <class Predicate>
bool soon(Predicate predicate) {
  for (int i = 0; i < 20000; ++i) {
    if (predicate()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

/// Waits until so many commands wait.
inline bool queue_is(const House& house, uint64_t length) {
  return soon([&] { return house.board.read().queued == length; });
}

}  // namespace awex::test
