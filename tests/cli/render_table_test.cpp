#include "cli/render_table.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "cli/sample_report.hpp"
#include "cli/text_table.hpp"

namespace awex {
namespace {

/// So wide that nothing is folded.
constexpr TextStyle kWide{.width = 120};

/// The lines of the report whose first words are `words`, blanks squeezed.
std::vector<std::string> lines_with(const std::string& text, const std::string& words) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream cells(line);
    std::string squeezed;
    for (std::string cell; cells >> cell;) squeezed += (squeezed.empty() ? "" : " ") + cell;
    if (squeezed.rfind(words, 0) == 0) found.push_back(squeezed);
  }
  return found;
}

std::string only_line(const std::string& text, const std::string& words) {
  const auto found = lines_with(text, words);
  CAPTURE(text);
  CAPTURE(words);
  REQUIRE(found.size() == 1);
  return found[0];
}

TEST_CASE("the report of a good run tells everything a line at a time") {
  const auto text = render_table(test::sample_report(), kWide);
  CHECK(only_line(text, "# command") == "# command update, started 2026-05-04T03:02:01Z");
  CHECK(only_line(text, "# model") == "# model qwen3-4b: 398 tensors, 8.04 GB");
  CHECK(only_line(text, "# trainer") == "# trainer megatron:tp=1");
  CHECK(only_line(text, "# inference") == "# inference sglang:tp=1");
  CHECK(only_line(text, "# world") == "# world 2 ranks, 1 GPU, 1 node");
  CHECK(only_line(text, "# backend") == "# backend cuda");
  CHECK(only_line(text, "# plan") ==
        "# plan 398 pieces in 2.00 ms; 8.04 GB from the own GPU, 7 B from others (at least 5 B are "
        "needed)");
  CHECK(only_line(text, "version phase") ==
        "version phase role tag start time bytes rate limit ratio");
  CHECK(only_line(text, "(ms) (ms) (GB)") == "(ms) (ms) (GB) (GB/s) (GB/s)");
  CHECK(only_line(text, "1 offload") ==
        "1 offload trainer optimizer 0.000 1000.000 50.000 50.00 62.50 0.800");
  CHECK(only_line(text, "1 transfer") == "1 transfer all weights 1000.000 500.000 8.000 16.00 - -");
  CHECK(only_line(text, "1 commit") == "1 commit all - 1500.000 500.000 - - - -");
  CHECK(only_line(text, "1 2000.000") == "1 2000.000 398 0 0x0123456789abcdef yes");
  CHECK(only_line(text, "trainer optimizer 48") == "trainer optimizer 48.000 48.000");
  CHECK(only_line(text, "memory") ==
        "memory 64.0 GB at the peak of the fullest device, 48.0 GB of pinned host memory");
  CHECK(only_line(text, "leak").rfind("leak none", 0) == 0);
  CHECK(only_line(text, "digest") == "digest 398 tensors, 0 wrong, model 0x0123456789abcdef");
  CHECK(only_line(text, "committed") == "committed version 1");
  CHECK(only_line(text, "result") == "result ok");
}

TEST_CASE("every note of the layout is a line of the header") {
  auto report = test::sample_report();
  CHECK(lines_with(render_table(report, kWide), "# note").empty());
  report.notes = {"run the engine's own step", "start it with care"};
  CHECK(lines_with(render_table(report, kWide), "# note") ==
        std::vector<std::string>{"# note run the engine's own step", "# note start it with care"});
}

TEST_CASE("few versions are listed in full, of many the first and the last") {
  auto report = test::sample_report();
  report.versions.clear();
  for (uint64_t number = 1; number <= kVersionsInFull; ++number) {
    report.versions.push_back(test::sample_version(number));
  }
  auto text = render_table(report, kWide);
  CHECK(lines_with(text, "2 offload").size() == 1);
  CHECK(lines_with(text, "# phases of").empty());
  while (report.versions.size() < 7) {
    report.versions.push_back(test::sample_version(report.versions.size() + 1));
  }
  text = render_table(report, kWide);
  CHECK(lines_with(text, "1 offload").size() == 1);
  CHECK(lines_with(text, "2 offload").empty());
  CHECK(lines_with(text, "7 offload").size() == 1);
  CHECK(only_line(text, "# phases of") ==
        "# phases of 5 versions between are left out here; --json has them all");
  for (int number = 1; number <= 7; ++number) {
    CHECK(only_line(text, fmt::format("{} 2000.000", number)).find("yes") != std::string::npos);
  }
  CHECK(text.find("timeline of version 7:") != std::string::npos);
}

TEST_CASE("small runs are shown in small units") {
  auto report = test::sample_report();
  for (auto& phase : report.versions[0].phases) phase.bytes /= 10'000;
  const auto text = render_table(report, kWide);
  CHECK(only_line(text, "(ms) (ms)") == "(ms) (ms) (MB) (GB/s) (GB/s)");
  CHECK(only_line(text, "1 offload").find(" 5.000 ") != std::string::npos);
}

TEST_CASE("bad news are said as such") {
  auto report = test::sample_report();
  report.error = test::sample_error();
  report.poisoned = true;
  report.committed_version.reset();
  report.versions[0].committed = false;
  report.versions[0].digest = DigestReport{398, 2, 0x1U, {"a", "b"}};
  report.memory.leaked_bytes = 2'000'000;
  const auto text = render_table(report, kWide);
  CHECK(only_line(text, "leak").rfind("leak 2.00 MB leaked", 0) == 0);
  CHECK(only_line(text, "digest") ==
        "digest 398 tensors, 2 wrong (a, b), model 0x0000000000000001");
  CHECK(only_line(text, "committed").find("may be mixed") != std::string::npos);
  CHECK(only_line(text, "result") == "result failed with exit code 3: tensor \"a\" differs");
}

TEST_CASE("what the driver may take for itself is no leak") {
  auto report = test::sample_report();
  report.memory.leaked_bytes = 2'000'000;
  report.memory.leak_tolerance_bytes = 32'000'000;
  CHECK(only_line(render_table(report, kWide), "leak").rfind("leak none", 0) == 0);
  report.memory.leaked_bytes = 33'000'000;
  CHECK(only_line(render_table(report, kWide), "leak").rfind("leak 33.0 MB leaked", 0) == 0);
}

TEST_CASE("what was not checked is not called good") {
  auto report = test::sample_report();
  report.versions[0].digest.reset();
  report.memory.leaked_bytes.reset();
  const auto text = render_table(report, kWide);
  CHECK(only_line(text, "digest") == "digest not compared");
  CHECK(only_line(text, "leak").rfind("leak unknown", 0) == 0);
}

TEST_CASE("commands that hand nothing over have no verdict on digests and commits") {
  auto report = test::sample_report();
  report.command = "offload";
  const auto text = render_table(report, kWide);
  CHECK(lines_with(text, "digest").empty());
  CHECK(lines_with(text, "committed").empty());
  CHECK(only_line(text, "leak").rfind("leak none", 0) == 0);
  CHECK(only_line(text, "result") == "result ok");
}

TEST_CASE("escape codes are there with colour and only then") {
  const auto report = test::sample_report();
  CHECK(render_table(report, {.unicode = true, .color = false}).find('\033') == std::string::npos);
  CHECK(render_table(report, {.unicode = true, .color = true}).find("\033[32mok\033[0m") !=
        std::string::npos);
}

TEST_CASE("ranks that have one core are named with what to do, the first few of many") {
  auto report = test::sample_report();
  CHECK(render_table(report, kWide).find("# binding") == std::string::npos);
  report.one_core_ranks = {1};
  CHECK(render_table(report, kWide).find("# binding    rank 1 bound to one core") !=
        std::string::npos);
  report.one_core_ranks = {0, 1, 2, 3, 4, 5};
  CHECK(render_table(report, kWide).find("# binding    ranks 0, 1, 2, 3 and 2 more bound") !=
        std::string::npos);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) found.push_back(line);
  return found;
}

size_t widest(const std::string& text) {
  size_t columns = 0;
  for (const auto& line : lines_of(text)) {
    const auto continues = [](unsigned char c) { return (c & 0xC0U) == 0x80U; };
    columns = std::max(columns, line.size() - static_cast<size_t>(std::count_if(
                                                  line.begin(), line.end(), continues)));
  }
  return columns;
}

/// A report in which everything is long that may be.
Report long_report() {
  auto report = test::sample_report();
  report.model_name = "/scratch/somebody/" + std::string(150, 'm') + "/Qwen3-235B-A22B";
  report.trainer = "megatron:tp=16,pp=16,ep=64,etp=2,cp=4,vpp=8,layout=" + std::string(90, 'x');
  report.notes = {std::string(200, 'n') + " and words and words and words and words and words"};
  report.one_core_ranks = {1000, 1001, 1002, 1003, 1004, 1005};
  for (auto& phase : report.versions[0].phases) {
    phase.phase += "_with_a_long_name";
    phase.tag = "an_engine's_own_tag_with_a_very_long_name";
    phase.start_s += 98765;
    phase.seconds += 12345;
    phase.bytes *= 1000;
  }
  report.memory.by_role_and_tag[0].tag = std::string(100, 't');
  report.error = test::sample_error();
  return report;
}

TEST_CASE("the report fits, however narrow it is and however long names are") {
  for (const size_t width : {size_t{60}, size_t{80}, size_t{120}, size_t{200}}) {
    CAPTURE(width);
    for (const bool unicode : {false, true}) {
      CHECK(widest(render_table(test::sample_report(), {.unicode = unicode, .width = width})) <=
            width);
      CHECK(widest(render_table(long_report(), {.unicode = unicode, .width = width})) <= width);
    }
  }
}

TEST_CASE("colours take no room") {
  auto report = test::sample_report();
  report.memory.leaked_bytes = 2'000'000;
  auto text = render_table(report, {.color = true, .width = 60});
  for (const std::string code : {"\033[31m", "\033[32m", "\033[0m"}) {
    for (size_t at = 0; (at = text.find(code)) != std::string::npos;) text.erase(at, code.size());
  }
  CHECK(text == render_table(report, {.width = 60}));
}

TEST_CASE("where 80 columns do not do, a version is a heading, and nothing is left out") {
  const auto text = render_table(test::sample_report(), {});
  CHECK(only_line(text, "phase") == "phase role tag start time bytes rate limit ratio");
  CHECK(only_line(text, "version 1") == "version 1");
  CHECK(only_line(text, "offload trainer") ==
        "offload trainer optimizer 0.000 1000.000 50.000 50.00 62.50 0.800");
  CHECK(text.find("left out") == std::string::npos);
}

TEST_CASE("what a narrow report leaves out is named, and the width that has it") {
  const auto text = render_table(test::sample_report(), {.width = 60});
  CHECK(only_line(text, "offload trainer") ==
        "offload trainer optimizer 1000.000 50.000 50.00 0.800");
  const auto note = only_line(text, "# left out at 60 columns: start, limit; COLUMNS=");
  const auto columns = std::stoul(note.substr(note.find('=') + 1));
  const auto whole = render_table(test::sample_report(), {.width = columns});
  CHECK(only_line(whole, "version phase") ==
        "version phase role tag start time bytes rate limit ratio");
  CHECK(whole.find("left out") == std::string::npos);
}

TextTable table_of_names(const std::string& name) {
  TextTable table({{"host", "", TextColumn::Align::kLeft}, {"bytes", "(GB)"}, {"time", "(ms)"}});
  table.add_row({name, "1.5", "20"});
  table.add_row({"b", "12.5", "1"});
  return table;
}

TEST_CASE("a long name is folded behind its signs, and the columns beside it stay in line") {
  CHECK(table_of_names("node-17.rack-4.cluster").text(25) == R"(host           bytes time
                (GB) (ms)
node-17.rack-    1.5   20
4.cluster
b               12.5    1
)");
  CHECK(table_of_names("abcdefghijklmnop").text(20) == R"(host      bytes time
           (GB) (ms)
abcdefghi   1.5   20
jklmnop
b          12.5    1
)");
}

TEST_CASE("columns that do not fit side by side follow below, behind the first") {
  TextTable table({{"from", "", TextColumn::Align::kLeft}, {"a", ""}, {"b", ""}, {"c", ""}});
  table.add_row({"x", "1234567", "2", "3"});
  CHECK(table.text(14) == R"(from       a b
x    1234567 2

from c
x    3
)");
}

TEST_CASE("characters count, not their bytes") {
  TextTable table({{"name", "", TextColumn::Align::kLeft}, {"n", ""}});
  table.add_row({"\u00fc\u00f6\u00e4\u00df", "1"});
  CHECK(table.text() == "name  n\n\u00fc\u00f6\u00e4\u00df  1\n");
}

}  // namespace
}  // namespace awex
