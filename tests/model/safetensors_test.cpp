#include "model/safetensors.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <string>
#include <thread>
#include <vector>

#include "model/refusal.hpp"
#include "support/failure_of.hpp"
#include "support/temporary_directory.hpp"

using namespace awex;

namespace {

std::string length_bytes(uint64_t length) {
  return {reinterpret_cast<const char*>(&length), sizeof(length)};
}

std::string file_content(const std::string& header, uint64_t data_bytes) {
  return length_bytes(header.size()) + header + std::string(data_bytes, 'x');
}

class SafetensorsFixture {
 public:
  SafetensorsFile open(const std::string& content) {
    const auto path = directory_.path() / "a.safetensors";
    test::write_file(path, content);
    return SafetensorsFile(path);
  }

  void refuse(const std::string& content, std::initializer_list<const char*> words) {
    CAPTURE(content.substr(0, 200));
    test::check_refused([&] { (void)open(content); }, {"a.safetensors"});
    test::check_refused([&] { (void)open(content); }, words);
  }

  /// A header with one tensor "t" of 24 bytes of data.
  void refuse_tensor(const std::string& description, std::initializer_list<const char*> words) {
    refuse(file_content(R"({"t": )" + description + "}", 24), words);
  }

 protected:
  test::TemporaryDirectory directory_;
};

}  // namespace

TEST_CASE_FIXTURE(SafetensorsFixture, "tensors come in the order of their data") {
  const auto file = open(file_content(
      R"({"__metadata__": {"format": "pt"},
          "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [12, 24]},
          "b": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
          "none": {"dtype": "F16", "shape": [4, 0], "data_offsets": [12, 12]},
          "scalar": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [24, 25], "more": 1}}   )",
      25));
  const auto& entries = file.entries();
  REQUIRE(entries.size() == 4);
  CHECK(entries[0].name == "b");
  CHECK(entries[0].shape == std::vector<uint64_t>{3});
  CHECK(entries[1].name == "none");
  CHECK(entries[2].name == "a");
  CHECK(entries[2].dtype == DType::kBf16);
  CHECK(entries[2].bytes == 12);
  CHECK(entries[2].offset_bytes == file.file().bytes() - 25 + 12);
  CHECK(entries[3].name == "scalar");
}

TEST_CASE_FIXTURE(SafetensorsFixture, "files that are cut off or no safetensors are refused") {
  refuse("", {"too few"});
  refuse("1234567", {"7 bytes"});
  refuse(length_bytes(2), {"cut off"});
  refuse(length_bytes(100) + "{}", {"cut off", "108"});
  const auto page = test::failure_of([&] { (void)open("<html><body>Not found</body></html>"); });
  REQUIRE(page);
  CHECK(page->hint().find("something else under this name") != std::string::npos);
  refuse(length_bytes(100'000'001) + "{}", {"100000001"});
  refuse(length_bytes(uint64_t{1} << 63) + "{}", {"9223372036854775808"});
  refuse(length_bytes(~uint64_t{0}) + "{}", {"18446744073709551615"});
  refuse(length_bytes(0), {"JSON"});
}

TEST_CASE_FIXTURE(SafetensorsFixture, "headers that are no object of tensors are refused") {
  refuse(file_content("{", 0), {"JSON", "byte"});
  refuse(file_content("[]", 0), {"object"});
  refuse(file_content(R"({} trailing)", 0), {"JSON"});
  refuse(file_content(std::string(1'000'000, '['), 0), {"nested"});
  refuse(file_content(R"({"__metadata__": {"a": 1}})", 0), {"__metadata__"});
  refuse(file_content(R"({"__metadata__": []})", 0), {"__metadata__"});
  refuse(file_content(R"({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                          "t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})",
                      8),
         {"\"t\"", "twice"});
  refuse_tensor(R"({"dtype": "F32", "dtype": "F32", "shape": [6], "data_offsets": [0, 24]})",
                {"\"dtype\"", "twice"});
}

TEST_CASE_FIXTURE(SafetensorsFixture, "descriptions with missing or strange fields are refused") {
  refuse_tensor("7", {"\"t\"", "7"});
  refuse_tensor(R"({"shape": [6], "data_offsets": [0, 24]})", {"\"t\"", "\"dtype\""});
  refuse_tensor(R"({"dtype": "F32", "data_offsets": [0, 24]})", {"\"t\"", "\"shape\""});
  refuse_tensor(R"({"dtype": "F32", "shape": [6]})", {"\"t\"", "\"data_offsets\""});
  refuse_tensor(R"({"dtype": "I65", "shape": [3], "data_offsets": [0, 24]})", {"\"t\"", "I65"});
  refuse_tensor(R"({"dtype": "I64", "shape": [4], "data_offsets": [0, 24]})", {"\"t\"", "I64"});
  refuse_tensor(R"({"dtype": 4, "shape": [3], "data_offsets": [0, 24]})", {"\"t\"", "dtype 4"});
  refuse_tensor(R"({"dtype": "F32", "shape": 6, "data_offsets": [0, 24]})",
                {"\"t\"", "\"shape\" 6"});
  refuse_tensor(R"({"dtype": "F32", "shape": [-6], "data_offsets": [0, 24]})", {"\"t\"", "[-6]"});
  refuse_tensor(R"({"dtype": "F32", "shape": [6.0], "data_offsets": [0, 24]})", {"\"t\"", "[6.0]"});
  refuse_tensor(R"({"dtype": "F32", "shape": [18446744073709551616], "data_offsets": [0, 24]})",
                {"\"t\"", "whole numbers"});
  refuse_tensor(R"({"dtype": "F32", "shape": [6], "data_offsets": [0]})", {"\"t\"", "[0]"});
  refuse_tensor(R"({"dtype": "F32", "shape": [6], "data_offsets": [0, "24"]})",
                {"\"t\"", "\"24\""});
}

TEST_CASE_FIXTURE(SafetensorsFixture, "bytes that do not match shape and file are refused") {
  refuse_tensor(R"({"dtype": "F32", "shape": [5], "data_offsets": [0, 24]})",
                {"\"t\"", "24", "20"});
  refuse_tensor(R"({"dtype": "F32", "shape": [7], "data_offsets": [0, 28]})",
                {"[0,28]", "24 data"});
  const auto cut_off = test::failure_of([&] {
    (void)open(
        file_content(R"({"t": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}})", 24));
  });
  REQUIRE(cut_off);
  CHECK(cut_off->hint() == "the file is damaged: fetch it again");
  refuse_tensor(R"({"dtype": "F32", "shape": [6], "data_offsets": [24, 0]})", {"[24,0]"});
  refuse_tensor(R"({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})", {"end at byte"});
  refuse_tensor(R"({"dtype": "F32", "shape": [4], "data_offsets": [8, 24]})", {"\"t\"", "byte 8"});
  // 2^62 * 4 * 4 is 0 mod 2^64, and so is 2^32 * 2^32 * 1.
  refuse_tensor(R"({"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]})",
                {"\"t\"", "64 bits"});
  refuse_tensor(
      R"({"dtype": "F8_E5M2", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]})",
      {"\"t\"", "64 bits"});
}

TEST_CASE_FIXTURE(SafetensorsFixture, "overlaps and gaps between tensors are refused") {
  const auto two = [&](const char* a, const char* b) {
    return file_content(fmt::format(R"({{"a": {{"dtype": "F16", "shape": [4], "data_offsets": {}}},
                                        "b": {{"dtype": "F16", "shape": [4], "data_offsets": {}}}}})",
                                    a, b),
                        16);
  };
  CHECK(open(two("[8, 16]", "[0, 8]")).entries().size() == 2);
  refuse(two("[0, 8]", "[0, 8]"), {"\"b\"", "ends at 8"});
  refuse(two("[0, 8]", "[6, 14]"), {"\"b\"", "byte 6"});
  refuse(two("[8, 16]", "[8, 16]"), {"\"a\"", "ends at 0"});
}

TEST_CASE_FIXTURE(SafetensorsFixture, "what is no regular file is refused without waiting") {
  const auto path = directory_.path() / "fifo.safetensors";
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  test::check_refused([&] { SafetensorsFile file(path); }, {"fifo.safetensors", "regular"});
  test::check_refused([&] { SafetensorsFile file(directory_.path()); }, {"regular"});
  test::check_refused([&] { SafetensorsFile file(directory_.path() / "none"); },
                      {"none", "No such"});
}

TEST_CASE_FIXTURE(SafetensorsFixture, "messages show strange names without control characters") {
  const std::string description = R"({"dtype": "I9", "shape": [24], "data_offsets": [0, 24]})";
  refuse(file_content(R"({"\u001b[31mred": )" + description + "}", 24), {"\"?[31mred\""});
  refuse(file_content("{\"" + std::string(100'000, 'n') + "\": " + description + "}", 24),
         {"nnn..."});
}

TEST_CASE_FIXTURE(SafetensorsFixture, "a file that shrinks while it is open gives an error") {
  const auto file =
      open(file_content(R"({"t": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}})", 24));
  std::vector<std::byte> out(24);
  file.file().read(file.entries()[0].offset_bytes, out);
  CHECK(out[0] == std::byte{'x'});
  std::filesystem::resize_file(directory_.path() / "a.safetensors", file.file().bytes() - 1);
  CHECK_THROWS_AS(file.file().read(file.entries()[0].offset_bytes, out), Error);
}

TEST_CASE_FIXTURE(SafetensorsFixture, "what the writer writes comes back, whatever the order") {
  const auto path = directory_.path() / "b.safetensors";
  const std::string a = "aaaaaaaaaaaa";
  const std::string b = "bbbbb";
  const auto bytes = [](std::string_view text) { return std::as_bytes(std::span(text)); };
  {
    const SafetensorsWriter writer(
        path, {{"a \"quoted\"", DType::kBf16, {2, 3}, 0, 0}, {"b", DType::kF8E5M2, {5}, 0, 0}});
    writer.write(1, 0, bytes(b));
    writer.write(0, 4, bytes(std::string_view(a).substr(4)));
    writer.write(0, 0, bytes(std::string_view(a).substr(0, 4)));
    writer.flush();
  }
  const SafetensorsFile file(path);
  REQUIRE(file.entries().size() == 2);
  CHECK(file.entries()[0].name == "a \"quoted\"");
  CHECK(file.entries()[0].shape == std::vector<uint64_t>{2, 3});
  CHECK(file.entries()[0].offset_bytes % 8 == 0);
  std::string data(17, '?');
  file.file().read(file.entries()[0].offset_bytes, std::as_writable_bytes(std::span(data)));
  CHECK(data == a + b);
  CHECK_THROWS_AS(SafetensorsWriter(path, {}), Error);
}
