#include "attach/channel.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attach/sockets.hpp"
#include "support/failure_of.hpp"

namespace {

using namespace awex;
using namespace awex::attach;
using test::failure_of;

/// A channel, and the bare socket at its other end.
struct Ends {
  explicit Ends(std::pair<UniqueFd, UniqueFd> sockets = test::connected_sockets())
      : channel(std::move(sockets.first)), other(std::move(sockets.second)) {}

  /// Sends bytes, with descriptors where there are some.
  void say(const std::string& bytes, const std::vector<int>& fds = {}) const {
    iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
    if (!fds.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      auto* head = CMSG_FIRSTHDR(&message);
      head->cmsg_level = SOL_SOCKET;
      head->cmsg_type = SCM_RIGHTS;
      head->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(head), fds.data(), fds.size() * sizeof(int));
    }
    REQUIRE(::sendmsg(other.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
  }

  /// What is thrown when all that was said is read.
  Error refusal() {
    const auto failure = failure_of([&] {
      while (channel.receive()) {
      }
    });
    REQUIRE(failure);
    return *failure;
  }

  Channel channel;
  UniqueFd other;
};

std::string number(uint32_t value) {
  std::string text;
  for (int i = 0; i < 4; ++i) text += static_cast<char>((value >> (8 * i)) & 0xffU);
  return text;
}

std::string frame(const std::string& text, uint32_t fds = 0) {
  return number(static_cast<uint32_t>(text.size())) + number(fds) + text;
}

ino_t inode_of(int fd) {
  struct stat status {};
  REQUIRE(::fstat(fd, &status) == 0);
  return status.st_ino;
}

UniqueFd new_file() {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC));
  REQUIRE(fd.valid());
  return fd;
}

size_t open_fds() {
  size_t count = 0;
  for (int fd = 0; fd < 1024; ++fd) count += ::fcntl(fd, F_GETFD) != -1;
  return count;
}

TEST_CASE("frames arrive in order, each with its own descriptors") {
  auto [one, two] = test::connected_sockets();
  Channel sender(std::move(one));
  Channel receiver(std::move(two));
  NoMonitor monitor;
  CHECK_FALSE(receiver.receive());
  std::vector<UniqueFd> files;
  for (size_t i = 0; i < kMostFds; ++i) files.push_back(new_file());
  std::vector<std::vector<int>> sent_fds(3);
  sent_fds[1] = {files[0].get(), files[1].get()};
  for (const auto& file : files) sent_fds[2].push_back(file.get());
  const std::vector<std::string> texts = {"", std::string("a\0b", 3), "last"};
  for (size_t i = 0; i < texts.size(); ++i) {
    sender.send(texts[i], sent_fds[i], Deadline(Seconds(5)), monitor);
  }
  const auto before = open_fds();
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto got = receiver.receive();
    REQUIRE(got);
    CHECK(got->text == texts[i]);
    REQUIRE(got->fds.size() == sent_fds[i].size());
    for (size_t k = 0; k < got->fds.size(); ++k) {
      CHECK(inode_of(got->fds[k].get()) == inode_of(sent_fds[i][k]));
      CHECK((::fcntl(got->fds[k].get(), F_GETFD) & FD_CLOEXEC) != 0);
    }
  }
  CHECK_FALSE(receiver.receive());
  CHECK(open_fds() == before);
}

TEST_CASE("that the other end has gone is known before what it left is read") {
  Ends ends;
  CHECK_FALSE(ends.channel.has_ended());
  ends.say("ab");
  CHECK_FALSE(ends.channel.has_ended());
  ends.other.reset();
  CHECK(ends.channel.has_ended());
}

TEST_CASE("a frame that is longer than the socket's buffer goes as it is read") {
  auto [one, two] = test::connected_sockets();
  Channel sender(std::move(one));
  Channel receiver(std::move(two));
  std::string text(5 << 20, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 + i / 4096);
  const auto file = new_file();
  std::thread writer([&] {
    NoMonitor monitor;
    sender.send(text, std::vector{file.get()}, Deadline(Seconds(30)), monitor);
  });
  std::optional<Frame> got;
  const Deadline deadline(Seconds(30));
  while (!got && !deadline.expired()) {
    receiver.wait_readable(Seconds(0.1));
    got = receiver.receive();
  }
  writer.join();
  REQUIRE(got);
  CHECK(got->text == text);
  REQUIRE(got->fds.size() == 1);
  CHECK(inode_of(got->fds[0].get()) == inode_of(file.get()));
}

TEST_CASE("a frame that comes byte by byte is whole at its last byte") {
  Ends ends;
  const auto bytes = frame("hello", 1);
  const auto file = new_file();
  ends.say(bytes.substr(0, 1), {file.get()});
  for (size_t i = 1; i < bytes.size(); ++i) {
    CHECK_FALSE(ends.channel.receive());
    ends.say(bytes.substr(i, 1));
  }
  const auto got = ends.channel.receive();
  REQUIRE(got);
  CHECK(got->text == "hello");
  CHECK(got->fds.size() == 1);
}

TEST_CASE("what is no frame is refused and ends the connection") {
  const auto file = new_file();
  const auto x = file.get();
  const std::vector<std::pair<std::string, std::function<void(const Ends&)>>> cases = {
      {"announces a message of 67108865 bytes and 0 descriptors: 67108864 and 128 are the most",
       [](const Ends& ends) { ends.say(number((64U << 20) + 1) + number(0)); }},
      {"announces a message of 4294967295 bytes",
       [](const Ends& ends) { ends.say(number(~0U) + number(~0U) + "x"); }},
      {"1 bytes and 129 descriptors",
       [](const Ends& ends) { ends.say(number(1) + number(129) + "x"); }},
      {"with 2 descriptors, and 1 have come",
       [&](const Ends& ends) { ends.say(frame("x", 2), {x}); }},
      {"with 2 descriptors, and 0 have come", [&](const Ends& ends) { ends.say(frame("", 2)); }},
      {"with 0 descriptors, and 1 have come", [&](const Ends& ends) { ends.say(frame("x"), {x}); }},
      {"with 0 descriptors, and 1 have come",
       [&](const Ends& ends) {
         ends.say(frame("xy").substr(0, 9));
         ends.say("y", {x});
       }},
      {"more than 128 descriptors",
       [&](const Ends& ends) { ends.say(number(9), std::vector<int>(200, x)); }},
      {"and 200 have come",
       [&](const Ends& ends) {
         for (int i = 0; i < 10; ++i) ends.say("\1", std::vector<int>(100, x));
       }},
  };
  for (const auto& [why, say] : cases) {
    Ends ends;
    const auto before = open_fds();
    say(ends);
    const auto refusal = ends.refusal();
    CAPTURE(refusal.what());
    CHECK(refusal.code() == ExitCode::kRequest);
    CHECK(std::string(refusal.what()).find(why) != std::string::npos);
    CHECK(ends.refusal().code() == ExitCode::kPeerLost);
    CHECK(open_fds() == before);
    NoMonitor nobody;  // It may be told what was wrong.
    CHECK_FALSE(failure_of([&] { ends.channel.send("wrong", {}, Deadline(Seconds(1)), nobody); }));
  }
}

TEST_CASE("descriptors that this process has no room for are told") {
  Ends ends;
  const auto file = new_file();
  const std::vector<int> fds(5, file.get());
  ends.say(frame("x", 5), fds);
  rlimit limit{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  auto lower = limit;
  lower.rlim_cur = static_cast<rlim_t>(file.get()) + 3;
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &lower) == 0);
  const auto refusal = ends.refusal();
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
  CHECK(refusal.code() == ExitCode::kRuntime);
  CHECK(refusal.hint().find("ulimit -n") != std::string::npos);
}

TEST_CASE("an end that goes is told after what it has said") {
  Ends ends;
  SUBCASE("between frames") {
    ends.say(frame("last"));
    ends.other.reset();
    CHECK(ends.channel.receive()->text == "last");
    CHECK(std::string(ends.refusal().what()) == "the other end has gone");
  }
  SUBCASE("in the midst of a head") {
    ends.say(frame("last").substr(0, 5));
    ends.other.reset();
    CHECK(std::string(ends.refusal().what()) == "the other end has gone in the midst of a message");
  }
  SUBCASE("in the midst of a text") {
    ends.say(frame("last").substr(0, 10));
    ends.other.reset();
    CHECK(std::string(ends.refusal().what()) == "the other end has gone in the midst of a message");
  }
  CHECK(ends.refusal().code() == ExitCode::kPeerLost);
  NoMonitor monitor;
  const auto failure =
      failure_of([&] { ends.channel.send("x", {}, Deadline(Seconds(5)), monitor); });
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kPeerLost);
}

class EndingMonitor final : public WaitMonitor {
 public:
  void poll() override { throw Error(ExitCode::kRuntime, "told to end"); }
};

TEST_CASE("a send to one that does not read ends, and so does the connection then") {
  Ends ends;
  const std::string text(4 << 20, 'x');
  SUBCASE("at the deadline") {
    NoMonitor monitor;
    const auto failure =
        failure_of([&] { ends.channel.send(text, {}, Deadline(Seconds(0.05)), monitor); });
    REQUIRE(failure);
    CHECK(failure->code() == ExitCode::kDeadline);
  }
  SUBCASE("when the monitor says so") {
    EndingMonitor monitor;
    const auto failure =
        failure_of([&] { ends.channel.send(text, {}, Deadline(Seconds(60)), monitor); });
    REQUIRE(failure);
    CHECK(std::string(failure->what()) == "told to end");
  }
  NoMonitor monitor;
  const auto failure =
      failure_of([&] { ends.channel.send("x", {}, Deadline(Seconds(5)), monitor); });
  REQUIRE(failure);
  CHECK(failure->code() == ExitCode::kPeerLost);
}

TEST_CASE("what is too much for a frame is not sent") {
  Ends ends;
  NoMonitor monitor;
  const std::vector<int> fds(kMostFds + 1, 0);
  CHECK(failure_of([&] { ends.channel.send("x", fds, Deadline(Seconds(1)), monitor); }));
  CHECK(failure_of([&] {
    ends.channel.send(std::string(kLongestFrame + 1, 'x'), {}, Deadline(Seconds(1)), monitor);
  }));
  ends.channel.send("x", {}, Deadline(Seconds(1)), monitor);
  char bytes[64];
  CHECK(::recv(ends.other.get(), bytes, sizeof(bytes), MSG_DONTWAIT) == 9);
}

TEST_CASE("waiting for something to read ends with it, or after the time") {
  Ends ends;
  const Stopwatch watch;
  ends.channel.wait_readable(Seconds(0.02));
  CHECK(watch.seconds() >= 0.02);
  ends.say("x");
  const Stopwatch second;
  ends.channel.wait_readable(Seconds(30));
  CHECK(second.seconds() < 10);
}

}  // namespace
