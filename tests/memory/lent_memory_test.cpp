#include "memory/lent_memory.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <utility>

#include "base/error.hpp"
#include "memory/device.hpp"
#include "memory/mapping_device.hpp"

namespace {

using awex::BorrowedMemory;
using awex::LentMemory;
using awex::UniqueFd;

constexpr uint64_t kPage = 4096;

/// Memory of this process's own, at addresses that the kernel chooses.
class Mapping {
 public:
  Mapping(uint64_t bytes, int flags, int fd, uint64_t offset) : bytes_(bytes) {
    void* data =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, static_cast<off_t>(offset));
    REQUIRE(data != MAP_FAILED);
    data_ = static_cast<std::byte*>(data);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(data_, bytes_); }

  [[nodiscard]] std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t bytes_;
};

UniqueFd make_file(uint64_t bytes) {
  UniqueFd fd(::memfd_create("own", MFD_CLOEXEC));
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  return fd;
}

uint64_t number_of(const std::byte* address) { return reinterpret_cast<uintptr_t>(address); }

template <class Call>
std::string request_error_of(const Call& call) {
  try {
    call();
  } catch (const awex::Error& error) {
    CHECK(error.code() == awex::ExitCode::kRequest);
    return std::string(error.what()) + " | " + error.hint();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a shared mapping is lent whole, from wherever in the file it begins") {
  const auto fd = make_file(8 * kPage);
  const Mapping own(3 * kPage, MAP_SHARED, fd.get(), 2 * kPage);
  std::memset(own.data(), 0x5A, 3 * kPage);
  const auto lender = awex::make_host_mapping_device();
  auto lending = lender->lend(own.data() + kPage + 100);
  CHECK(lending.block.address == number_of(own.data()));
  CHECK(lending.block.bytes == 3 * kPage);
  CHECK(lending.block.offset_bytes == 2 * kPage);
  CHECK(lending.block.has_fd);
  CHECK((::fcntl(lending.fd.get(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK(lending.fd.get() != fd.get());

  const auto device = awex::make_host_device(0, 1);
  LentMemory lent;
  lent.number = 3;
  lent.stays = false;
  lent.lendings.push_back(std::move(lending));
  lent.segments = {{16, own.data() + 16, kPage}, {2 * kPage, own.data() + kPage + 64, kPage}};
  CHECK(lent.bytes() == 3 * kPage);
  const BorrowedMemory here(*device, "weights", lent);
  CHECK(here.number() == 3);
  CHECK_FALSE(here.stays());
  REQUIRE(here.placed().segments().size() == 2);
  own.data()[16 + 5] = std::byte{0x77};
  CHECK(*here.placed().at(16 + 5, 1) == std::byte{0x77});
  CHECK(*here.placed().at(2 * kPage, kPage) == std::byte{0x5A});
  CHECK(here.placed().segments()[0].address != own.data() + 16);
}

TEST_CASE("memory that no other process can map is refused with the remedy") {
  const auto lender = awex::make_host_mapping_device();
  const Mapping own(kPage, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const auto is_private = request_error_of([&] { (void)lender->lend(own.data()); });
  CHECK(contains(is_private, "is private to this process"));
  CHECK(contains(is_private, "share_memory()"));

  auto fd = make_file(kPage);
  const Mapping shared(kPage, MAP_SHARED, fd.get(), 0);
  fd.reset();
  CHECK(contains(request_error_of([&] { (void)lender->lend(shared.data()); }),
                 "that this process has no descriptor of"));
  CHECK(contains(request_error_of([&] { (void)lender->lend(nullptr); }), "nothing is mapped at"));
}

TEST_CASE("what lies in no block, or reaches out of one, is refused") {
  const auto fd = make_file(2 * kPage);
  const Mapping own(2 * kPage, MAP_SHARED, fd.get(), 0);
  const auto device = awex::make_host_device(0, 1);
  LentMemory lent;
  lent.lendings.push_back(awex::make_host_mapping_device()->lend(own.data()));
  lent.segments = {{0, own.data() + kPage, kPage + 8}};
  const auto open = [&] { const BorrowedMemory here(*device, "weights", lent); };
  CHECK(contains(request_error_of(open),
                 "of weights from byte 4096 on lie in no memory that is lent"));
  lent.segments = {{0, own.data() - kPage, kPage}};
  CHECK(contains(request_error_of(open), "from byte 0 on"));
}
