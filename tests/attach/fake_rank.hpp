#pragma once

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attach/channel.hpp"
#include "attach/control_page.hpp"
#include "attach/engine_record.hpp"
#include "attach/message.hpp"
#include "base/node_identity.hpp"
#include "memory/host_ranges.hpp"
#include "support/temporary_directory.hpp"

namespace awex::test {

/// A memory file with a text in it.
inline UniqueFd file_with(const std::string& bytes) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC));
  if (!fd.valid() ||
      ::pwrite(fd.get(), bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw std::runtime_error("memfd_create or pwrite failed");
  }
  return fd;
}

/// A rank that speaks what a test has it speak, on a thread of its own, over a real socket, with
/// memory that is its own.
class FakeRank {
 public:
  FakeRank(const std::filesystem::path& job, Role role, int device = 0) : job_(job.string()) {
    const auto here = read_node_identity();
    record.host = here.name();
    record.boot_id = text_of(here.boot);
    record.pid_namespace = own_pid_namespace();
    record.rank = 3;
    record.pid = ::getpid();
    record.role = role;
    record.device = device;
    record.backend = "host";
    record.socket = (directory_.path() / "socket").string();
    listener_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    record.socket.copy(static_cast<char*>(address.sun_path), sizeof(address.sun_path) - 1);
    if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
            0 ||
        ::listen(listener_.get(), 4) != 0) {
      throw std::runtime_error("bind or listen failed");
    }
    welcome.kind = attach::ToEngine::Kind::kWelcome;
    welcome.rank = record.rank;
    welcome.role_rank = 1;
    welcome.host = record.host;
    welcome.model = "tiny";
    welcome.layout = "hf";
    welcome.backend = "host";
    welcome.silence_s = 60;
    page_file = UniqueFd(::memfd_create("page", MFD_CLOEXEC));
    if (::ftruncate(page_file.get(), sizeof(attach::ControlPage)) != 0) {
      throw std::runtime_error("ftruncate failed");
    }
    void* memory = ::mmap(nullptr, sizeof(attach::ControlPage), PROT_READ | PROT_WRITE, MAP_SHARED,
                          page_file.get(), 0);
    if (memory == MAP_FAILED) throw std::runtime_error("mmap failed");
    page = new (memory) attach::ControlPage;
  }
  FakeRank(const FakeRank&) = delete;
  FakeRank& operator=(const FakeRank&) = delete;
  FakeRank(FakeRank&&) = delete;
  FakeRank& operator=(FakeRank&&) = delete;
  ~FakeRank() {
    if (thread_.joinable()) thread_.join();
    ::munmap(page, sizeof(attach::ControlPage));
  }

  /// Owns memory of a tag, taken or not.
  void own(Tag tag, uint64_t bytes, bool taken) {
    const auto at = static_cast<size_t>(tag);
    owned_.at(at) = make_host_chunks(tag_name(tag), bytes, pages_);
    welcome.bytes.at(at) = bytes;
    welcome.chunk_bytes.at(at) = owned_.at(at)->chunking().chunk_bytes;
    welcome.mapped.at(at) = taken;
    if (taken) owned_.at(at)->take(0, owned_.at(at)->chunking().count());
  }
  OwnedChunks& owned(Tag tag) { return *owned_.at(static_cast<size_t>(tag)); }

  /// Writes its record and does `work` on its thread.
  void begin(std::function<void()> work) {
    attach::write_engine_record(job_, record);
    thread_ = std::thread([this, work = std::move(work)] {
      try {
        work();
      } catch (...) {
        failure_ = std::current_exception();
        channel.reset();  // so that nobody waits for it
      }
    });
  }
  /// Waits until its work is done; throws what that has thrown.
  void join() {
    thread_.join();
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  attach::ToRank accept() {
    channel = std::make_unique<attach::Channel>(
        UniqueFd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)));
    return hear(attach::ToRank::Kind::kHello);
  }
  /// Takes an engine in and maps what is taken.
  void greet() {
    hello = accept();
    say(welcome, {page_file.get()});
    for (const auto tag : {Tag::kWeights, Tag::kOptimizer, Tag::kKvCache}) {
      if (welcome.mapped.at(static_cast<size_t>(tag))) map(tag);
    }
  }
  void greet_and_seal() {
    greet();
    seal = hear(attach::ToRank::Kind::kSeal);
    say(attach::ToEngine::Kind::kSealed);
  }

  attach::Frame frame() {
    const Deadline deadline(Seconds(30));
    while (!deadline.expired()) {
      if (auto got = channel->receive()) return std::move(*got);
      channel->wait_readable(Seconds(0.1));
    }
    throw std::runtime_error("the engine says nothing");
  }
  attach::ToRank hear(attach::ToRank::Kind kind) {
    last = frame();
    auto message = attach::decode_to_rank(last.text);
    if (message.kind != kind) throw std::runtime_error("the engine says " + last.text);
    return message;
  }
  void say(const attach::ToEngine& message, const std::vector<int>& fds = {}) {
    say_text(attach::encode(message), fds);
  }
  void say(attach::ToEngine::Kind kind) {
    attach::ToEngine message;
    message.kind = kind;
    say(message);
  }
  void say_text(const std::string& text, const std::vector<int>& fds = {}) {
    NoMonitor monitor;
    channel->send(text, fds, Deadline(Seconds(30)), monitor);
  }

  /// Has all chunks of a tag mapped, one message each; returns the engine's error.
  std::optional<Error> map(Tag tag) {
    const auto fds = owned(tag).export_fds();
    std::optional<Error> error;
    for (size_t i = 0; i < fds.size() && !error; ++i) {
      attach::ToEngine message;
      message.kind = attach::ToEngine::Kind::kMap;
      message.tag = tag;
      message.first = i;
      message.last = i + 1 == fds.size();
      error = ask(message, {fds[i]});
    }
    return error;
  }
  std::optional<Error> release(Tag tag) {
    attach::ToEngine message;
    message.kind = attach::ToEngine::Kind::kRelease;
    message.tag = tag;
    return ask(message);
  }
  /// Has chunks let go that these descriptors are the host memory of.
  std::optional<Error> let_go(Tag tag, uint64_t first, const std::vector<int>& fds,
                              std::vector<ChunkDigests> hold) {
    attach::ToEngine message;
    message.kind = attach::ToEngine::Kind::kCopied;
    message.tag = tag;
    message.first = first;
    message.holds = std::move(hold);
    return ask(message, fds);
  }
  std::optional<Error> ask(const attach::ToEngine& message, const std::vector<int>& fds = {}) {
    say(message, fds);
    return hear(attach::ToRank::Kind::kAck).error;
  }
  void over(uint64_t version, bool gave, bool brought, std::optional<Error> error = std::nullopt) {
    attach::ToEngine message;
    message.kind = attach::ToEngine::Kind::kOver;
    message.version = version;
    message.gave = gave;
    message.brought = brought;
    message.error = std::move(error);
    say(message);
  }

  /// What the memory of a tag has at an offset, as its owner sees it.
  std::byte read(Tag tag, uint64_t offset) { return mapping_of(tag)->data()[offset]; }
  void fill(Tag tag, int value) {
    std::memset(mapping_of(tag)->data(), value, owned(tag).chunking().bytes);
  }

  attach::EngineRecord record;
  attach::ToEngine welcome;
  UniqueFd page_file;
  attach::ControlPage* page = nullptr;
  std::unique_ptr<attach::Channel> channel;
  attach::ToRank hello;
  attach::ToRank seal;
  attach::Frame last;

 private:
  std::unique_ptr<MappedChunks> mapping_of(Tag tag) {
    auto& chunks = owned(tag);
    const auto& cut = chunks.chunking();
    auto mapping =
        make_host_mapping("look", cut.bytes, cut.chunk_bytes, MappedAccess::kReadWrite, pages_);
    mapping->map(chunks, 0, cut.count());
    return mapping;
  }

  TemporaryDirectory directory_;
  std::string job_;
  UniqueFd listener_;
  HostPages pages_;
  std::array<std::unique_ptr<OwnedChunks>, 3> owned_;
  std::thread thread_;
  std::exception_ptr failure_;
};

}  // namespace awex::test
