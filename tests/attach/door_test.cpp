#include "attach/door.hpp"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "attach/channel.hpp"
#include "attach/sockets.hpp"
#include "base/node_identity.hpp"
#include "support/failure_of.hpp"
#include "support/temporary_directory.hpp"

namespace awex::attach {
namespace {

constexpr Seconds kPatience{10};

/// An engine's end, spoken by the test.
class FakeEngine {
 public:
  explicit FakeEngine(const std::string& path) {
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(static_cast<char*>(address.sun_path), sizeof(address.sun_path) - 1);
    REQUIRE(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) ==
            0);
    channel_ = std::make_unique<Channel>(std::move(socket));
  }

  void say(const ToRank& message, const std::vector<int>& with = {}) {
    NoMonitor nobody;
    channel_->send(encode(message), with, Deadline(kPatience), nobody);
  }
  void say(ToRank::Kind kind) {
    ToRank message;
    message.kind = kind;
    say(message);
  }
  void hello(Role role = Role::kTrainer, int protocol = kProtocolVersion) {
    ToRank message;
    message.kind = ToRank::Kind::kHello;
    message.role = role;
    message.protocol = protocol;
    message.name = "fake 1.0";
    message.bytes = {1, 2, 3};
    say(message);
  }
  void ready(EngineWish wish = EngineWish::kNone) {
    ToRank message;
    message.kind = ToRank::Kind::kReady;
    message.wish = wish;
    say(message);
  }
  ToEngine hear() {
    const Deadline deadline(kPatience);
    while (!deadline.expired()) {
      if (auto frame = channel_->receive()) {
        fds = std::move(frame->fds);
        return decode_to_engine(frame->text);
      }
      channel_->wait_readable(Seconds(0.1));
    }
    FAIL("the rank says nothing");
    return {};
  }
  void leave() { channel_.reset(); }

  std::vector<UniqueFd> fds;  ///< That came along last.

 private:
  std::unique_ptr<Channel> channel_;
};

EngineRecord record() {
  EngineRecord record;
  const auto here = read_node_identity();
  record.host = here.name();
  record.boot_id = text_of(here.boot);
  record.rank = 3;
  record.pid = ::getpid();
  record.backend = "host";
  return record;
}

struct Rank {
  test::TemporaryDirectory directory;
  std::string job = directory.path().string();
  std::atomic<int> woken{0};
  NoMonitor nobody;
  Door door{job, record(), [this] { ++woken; }};

  std::string socket() const { return read_engine_records(job).at(0).socket; }
  Deadline soon() const { return Deadline(Seconds(0.2)); }
  Deadline later() const { return Deadline(kPatience); }

  void await(Door::State state) {
    wait_until([&] { return door.state() == state; }, "the door's state", later(), nobody);
  }
  /// One that has sealed.
  FakeEngine attach() {
    FakeEngine engine(socket());
    engine.hello();
    door.await_hello(kPatience, nobody);
    door.welcome({}, "", later(), nobody);
    CHECK(engine.hear().kind == ToEngine::Kind::kWelcome);
    engine.say(ToRank::Kind::kSeal);
    static_cast<void>(door.await_seal(kPatience, nobody));
    door.answer_seal(std::nullopt, later(), nobody);
    CHECK(engine.hear().kind == ToEngine::Kind::kSealed);
    return engine;
  }
};

ToEngine message(ToEngine::Kind kind) {
  ToEngine message;
  message.kind = kind;
  return message;
}

}  // namespace

/// Looks at a rank's record whenever the rank does not go on, and lets it go on once it has looked.
class Onlooker final : public WaitMonitor {
 public:
  Onlooker(const Rank& rank, std::function<void()> then) : rank_(rank), then_(std::move(then)) {}
  void poll() override {
    seen = read_engine_records(rank_.job).at(0).awaits;
    if (!seen.empty() && then_) std::exchange(then_, nullptr)();
  }

  std::string seen;

 private:
  const Rank& rank_;
  std::function<void()> then_;
};

TEST_CASE("a rank's record says what it waits for, as long as it does") {
  Rank rank;
  const auto awaits = [&] { return read_engine_records(rank.job).at(0).awaits; };
  CHECK(awaits().empty());
  std::optional<FakeEngine> engine;
  Onlooker hello(rank, [&] { engine.emplace(rank.socket()).hello(); });
  rank.door.await_hello(kPatience, hello);
  CHECK(hello.seen == "an engine to attach");
  CHECK(awaits().empty());
  rank.door.welcome({}, "", rank.later(), rank.nobody);
  Onlooker seal(rank, [&] { engine->say(ToRank::Kind::kSeal); });
  static_cast<void>(rank.door.await_seal(kPatience, seal));
  CHECK(seal.seen == fmt::format("fake 1.0 (pid {}) to declare its tensors", ::getpid()));
  CHECK(awaits().empty());
}

TEST_CASE("an engine goes through its life") {
  Rank rank;
  CHECK(rank.door.state() == Door::State::kAbsent);
  auto engine = rank.attach();
  CHECK(rank.door.state() == Door::State::kSealed);
  CHECK(rank.door.hello().bytes == BytesByTag{1, 2, 3});
  CHECK(rank.door.describe() == fmt::format("fake 1.0 (pid {})", ::getpid()));
  CHECK_FALSE(rank.door.is_ready());
  engine.ready(EngineWish::kHandOver);
  rank.door.await_ready(rank.later(), rank.nobody);
  CHECK(rank.door.is_ready());
  CHECK(rank.door.wish() == EngineWish::kNone);  // its consent is in use
  std::thread answers([&] {
    CHECK(engine.hear().kind == ToEngine::Kind::kRelease);
    engine.say(ToRank::Kind::kAck);
  });
  rank.door.ask(message(ToEngine::Kind::kRelease), {}, rank.later(), rank.nobody);
  answers.join();
  rank.door.tell(message(ToEngine::Kind::kOver));
  CHECK(engine.hear().kind == ToEngine::Kind::kOver);
  CHECK_FALSE(rank.door.is_ready());
  engine.say(ToRank::Kind::kDetach);
  rank.await(Door::State::kLost);
  CHECK(rank.door.has_detached());
  CHECK(rank.door.describe_loss().starts_with("detached 2"));
  CHECK(rank.woken > 0);
}

TEST_CASE("what an engine fails at is the rank's error") {
  Rank rank;
  auto engine = rank.attach();
  std::thread answers([&] {
    static_cast<void>(engine.hear());
    ToRank ack;
    ack.kind = ToRank::Kind::kAck;
    ack.error = runtime_error("the callback has failed");
    engine.say(ack);
  });
  const auto error = test::failure_of(
      [&] { rank.door.ask(message(ToEngine::Kind::kRelease), {}, rank.later(), rank.nobody); });
  answers.join();
  REQUIRE(error);
  CHECK(error->code() == ExitCode::kRuntime);
  CHECK(std::string(error->what()) == "the callback has failed");
  CHECK(error->context().tag == "weights");
}

TEST_CASE("an answer that comes late is not taken for the next one") {
  Rank rank;
  auto engine = rank.attach();
  const auto late = test::failure_of(
      [&] { rank.door.ask(message(ToEngine::Kind::kRelease), {}, rank.soon(), rank.nobody); });
  REQUIRE(late);
  CHECK(late->code() == ExitCode::kDeadline);
  CHECK(std::string(late->what()).find("fake 1.0") != std::string::npos);
  engine.say(ToRank::Kind::kAck);  // of that
  const auto next = test::failure_of(
      [&] { rank.door.ask(message(ToEngine::Kind::kChanged), {}, rank.soon(), rank.nobody); });
  REQUIRE(next);
  CHECK(next->code() == ExitCode::kDeadline);
}

TEST_CASE("a busy engine is named, and one that is gone") {
  Rank rank;
  auto engine = rank.attach();
  const auto busy = test::failure_of([&] { rank.door.await_ready(rank.soon(), rank.nobody); });
  REQUIRE(busy);
  CHECK(busy->code() == ExitCode::kDeadline);
  CHECK(std::string(busy->what()).find("fake 1.0") != std::string::npos);
  std::thread leaves([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    engine.leave();
  });
  const auto lost = test::failure_of([&] { rank.door.await_ready(rank.later(), rank.nobody); });
  leaves.join();
  REQUIRE(lost);
  CHECK(lost->code() == ExitCode::kPeerLost);
  CHECK(std::string(lost->what()).find("rank 3, fake 1.0") != std::string::npos);
  CHECK(lost->hint().find("attaches to " + rank.job) != std::string::npos);
}

TEST_CASE("a consent is given back unless a command uses it") {
  Rank rank;
  auto engine = rank.attach();
  engine.ready(EngineWish::kTakeBack);
  wait_until([&] { return rank.door.wish() == EngineWish::kTakeBack; }, "the wish", rank.later(),
             rank.nobody);
  engine.say(ToRank::Kind::kWithdraw);
  CHECK(engine.hear().kind == ToEngine::Kind::kWithdrawn);
  CHECK_FALSE(rank.door.is_ready());
  engine.ready();
  rank.door.await_ready(rank.later(), rank.nobody);
  engine.say(ToRank::Kind::kWithdraw);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  rank.door.tell(message(ToEngine::Kind::kOver));
  CHECK(engine.hear().kind == ToEngine::Kind::kOver);
  rank.door.tell(message(ToEngine::Kind::kOver));  // nobody consents: nothing is told
  engine.ready();
  wait_until([&] { return rank.door.is_ready(); }, "the consent", rank.later(), rank.nobody);
  rank.door.tell(message(ToEngine::Kind::kOver));  // nobody has used it
  CHECK(rank.door.is_ready());
  rank.door.use_consent();
  rank.door.tell(message(ToEngine::Kind::kOver));
  CHECK(engine.hear().kind == ToEngine::Kind::kOver);
  CHECK_FALSE(rank.door.is_ready());
}

TEST_CASE("who does not fit is refused, and harms nobody") {
  Rank rank;
  auto engine = rank.attach();
  const auto refusal_of = [&](const std::function<void(FakeEngine&)>& begin) {
    FakeEngine other(rank.socket());
    begin(other);
    const auto answer = other.hear();
    CHECK(answer.kind == ToEngine::Kind::kRefused);
    return std::string(answer.error->what());
  };
  CHECK(refusal_of([](FakeEngine& other) { other.hello(); }).find("fake 1.0") != std::string::npos);
  CHECK(refusal_of([](FakeEngine& other) { other.hello(Role::kInference); }).find("inference") !=
        std::string::npos);
  CHECK(refusal_of([](FakeEngine& other) { other.hello(Role::kTrainer, 99); }).find("99") !=
        std::string::npos);
  CHECK_FALSE(refusal_of([](FakeEngine& other) { other.say(ToRank::Kind::kSeal); }).empty());
  FakeEngine silent(rank.socket());
  engine.ready();
  rank.door.await_ready(rank.later(), rank.nobody);
}

TEST_CASE("another engine comes in place of one that is lost") {
  Rank rank;
  rank.attach().leave();
  rank.await(Door::State::kLost);
  auto other = rank.attach();
  other.ready();
  rank.door.await_ready(rank.later(), rank.nobody);
}

TEST_CASE("what was kept is given to the next") {
  Rank rank;
  {
    auto engine = rank.attach();
    const auto [ours, theirs] = test::connected_sockets();
    ToRank keep;
    keep.kind = ToRank::Kind::kKeep;
    keep.kept_bytes = 5;
    UniqueFd file(::memfd_create("kept", MFD_CLOEXEC));
    REQUIRE(::pwrite(file.get(), "hello", 5, 0) == 5);
    engine.say(keep, {file.get()});
    wait_until([&] { return rank.door.kept() == "hello"; }, "kept", rank.later(), rank.nobody);
    engine.say(keep, {ours.get()});  // would block who reads it
    rank.await(Door::State::kLost);
    CHECK(rank.door.kept() == "hello");
  }
  FakeEngine next(rank.socket());
  next.hello();
  rank.door.await_hello(kPatience, rank.nobody);
  rank.door.welcome({}, rank.door.kept(), rank.later(), rank.nobody);
  const auto welcome = next.hear();
  CHECK(welcome.kept_bytes == 5);
  REQUIRE(next.fds.size() == 2);
  std::string kept(5, '\0');
  CHECK(::pread(next.fds[1].get(), kept.data(), 5, 0) == 5);
  CHECK(kept == "hello");
  CHECK(::ftruncate(next.fds[0].get(), 0) != 0);  // nobody shortens the page under the rank
}

TEST_CASE("what an engine lends comes in parts, with its descriptors") {
  Rank rank;
  auto engine = rank.attach();
  UniqueFd file(::memfd_create("own", MFD_CLOEXEC));
  ToRank lend;
  lend.kind = ToRank::Kind::kLend;
  lend.declared[0] = {{"a", DType::kBf16, 2, 3, 4096}};
  lend.blocks = {{4096, 512, 0, true, {}}, {8192, 512, 0, false, {}}};
  engine.say(lend, {file.get()});
  lend.begins = false;
  lend.declared[0].clear();
  lend.blocks = {{16384, 512, 0, true, {}}};
  engine.say(lend, {file.get()});
  ToRank book;
  book.kind = ToRank::Kind::kBook;
  for (const uint64_t bytes : {5, 7}) {
    book.name = "graphs";
    book.booked_bytes = bytes;
    engine.say(book);
  }
  book.name = "NCCL";
  engine.say(book);
  wait_until([&] { return rank.door.booked_bytes() == 14; }, "books", rank.later(), rank.nobody);
  const Loan loan = rank.door.take_loan();
  REQUIRE(loan.tensors.size() == 1);
  CHECK(loan.tensors[0].name == "a");
  REQUIRE(loan.lendings.size() == 3);
  CHECK(loan.lendings[0].fd.valid());
  CHECK_FALSE(loan.lendings[1].fd.valid());
  CHECK(loan.lendings[2].fd.valid());
  CHECK(rank.door.take_loan().lendings.empty());
  engine.say(lend);  // without its descriptor
  rank.await(Door::State::kLost);
  CHECK(std::string(rank.door.lost_error().what()).find("with 0 descriptors for 1") !=
        std::string::npos);
}

TEST_CASE("patience has an end, and so has the job") {
  Rank rank;
  const auto absent = test::failure_of([&] { rank.door.await_hello(Seconds(0.1), rank.nobody); });
  REQUIRE(absent);
  CHECK(absent->code() == ExitCode::kDeadline);
  CHECK(absent->hint().find("--attach-timeout") != std::string::npos);
  test::TemporaryDirectory directory;
  auto door = std::make_unique<Door>(directory.path().string(), record(), nullptr);
  FakeEngine engine(read_engine_records(directory.path().string()).at(0).socket);
  engine.hello();
  door->await_hello(kPatience, rank.nobody);
  door->end_with(Error(ExitCode::kPeerLost, "rank 1 is gone"));
  door.reset();
  const auto end = engine.hear();
  CHECK(end.kind == ToEngine::Kind::kEnd);
  REQUIRE(end.error);
  CHECK(std::string(end.error->what()) == "rank 1 is gone");
  CHECK(read_engine_records(directory.path().string()).empty());
}

}  // namespace awex::attach
