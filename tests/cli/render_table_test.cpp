#include "cli/render_table.hpp"

#include <doctest/doctest.h>

#include <sstream>
#include <string>
#include <vector>

#include "cli/sample_report.hpp"

namespace awex {
namespace {

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
  const auto text = render_table(test::sample_report(), {});
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
  CHECK(lines_with(render_table(report, {}), "# note").empty());
  report.notes = {"run the engine's own step", "start it with care"};
  CHECK(lines_with(render_table(report, {}), "# note") ==
        std::vector<std::string>{"# note run the engine's own step", "# note start it with care"});
}

TEST_CASE("few versions are listed in full, of many the first and the last") {
  auto report = test::sample_report();
  report.versions.clear();
  for (uint64_t number = 1; number <= kVersionsInFull; ++number) {
    report.versions.push_back(test::sample_version(number));
  }
  auto text = render_table(report, {});
  CHECK(lines_with(text, "2 offload").size() == 1);
  CHECK(lines_with(text, "# phases of").empty());
  while (report.versions.size() < 7) {
    report.versions.push_back(test::sample_version(report.versions.size() + 1));
  }
  text = render_table(report, {});
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
  const auto text = render_table(report, {});
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
  const auto text = render_table(report, {});
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
  CHECK(only_line(render_table(report, {}), "leak").rfind("leak none", 0) == 0);
  report.memory.leaked_bytes = 33'000'000;
  CHECK(only_line(render_table(report, {}), "leak").rfind("leak 33.0 MB leaked", 0) == 0);
}

TEST_CASE("what was not checked is not called good") {
  auto report = test::sample_report();
  report.versions[0].digest.reset();
  report.memory.leaked_bytes.reset();
  const auto text = render_table(report, {});
  CHECK(only_line(text, "digest") == "digest not compared");
  CHECK(only_line(text, "leak").rfind("leak unknown", 0) == 0);
}

TEST_CASE("commands that hand nothing over have no verdict on digests and commits") {
  auto report = test::sample_report();
  report.command = "offload";
  const auto text = render_table(report, {});
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
  CHECK(render_table(report, {}).find("# binding") == std::string::npos);
  report.one_core_ranks = {1};
  CHECK(render_table(report, {}).find("# binding    rank 1 bound to one core") !=
        std::string::npos);
  report.one_core_ranks = {0, 1, 2, 3, 4, 5};
  CHECK(render_table(report, {}).find("# binding    ranks 0, 1, 2, 3 and 2 more bound") !=
        std::string::npos);
}

}  // namespace
}  // namespace awex
