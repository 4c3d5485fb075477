#include "cli/render_doctor.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

using namespace awex;

namespace {

DoctorReport report_of(int ranks) {
  DoctorReport report;
  report.started_at = "2026-01-02T03:04:05Z";
  report.backend = BackendKind::kHost;
  report.nodes = 1;
  report.finished = true;
  for (int rank = 0; rank < ranks; ++rank) {
    RankExamination one;
    one.rank = rank;
    one.host = "alpha";
    one.pid = 100 + rank;
    one.findings.fill(passed("fine"));
    report.ranks.push_back(std::move(one));
  }
  return report;
}

Finding& finding_of(DoctorReport& report, int rank, Check check) {
  return report.ranks.at(static_cast<size_t>(rank)).findings.at(static_cast<size_t>(check));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

}  // namespace

TEST_CASE("ranks are listed in runs") {
  CHECK(rank_list({0}) == "0");
  CHECK(rank_list({0, 1, 2, 3}) == "0-3");
  CHECK(rank_list({0, 2, 3, 7}) == "0,2-3,7");
}

TEST_CASE("ranks that found the same share a line, and remedies stand below") {
  auto report = report_of(6);
  finding_of(report, 4, Check::kMemfd) = failed("refused", "allow it");
  finding_of(report, 5, Check::kMemfd) = failed("refused", "allow it");
  finding_of(report, 0, Check::kSpeed) = waived("slow");
  // The numbers behind a finding do not tell ranks apart.
  finding_of(report, 1, Check::kDevShm) = with_value(passed("fine"), "free_bytes", 7);
  const auto text = render_doctor(report, {});
  CHECK(text.find("\nmemfd           0-3    passed  fine\n"
                  "memfd           4-5    failed  refused\n"
                  "    remedy: allow it\n") != std::string::npos);
  CHECK(text.find("\nlink speeds     0      waived  slow\n"
                  "link speeds     1-5    passed  fine\n") != std::string::npos);
  CHECK(text.find("\n/dev/shm        0-5    passed  fine\n") != std::string::npos);
  CHECK(text.find("\nresult     an update cannot run: 1 of 25 checks failed: memfd\n") !=
        std::string::npos);
  CHECK(text.find("\033[") == std::string::npos);
  const auto colored = render_doctor(report, {.color = true});
  CHECK(colored.find("\033[31mfailed  \033[0m") != std::string::npos);
}

TEST_CASE("the verdict of all is that an update can run") {
  auto report = report_of(2);
  finding_of(report, 1, Check::kNccl) = waived("no need");
  CHECK(render_doctor(report, {})
            .find("\nresult     an update can run: 24 checks passed, 1 waived\n") !=
        std::string::npos);
}

TEST_CASE("no line is longer than 80 columns") {
  auto report = report_of(40);
  std::string words;
  for (int i = 0; i < 60; ++i) words += "word" + std::to_string(i) + " ";
  for (int rank = 0; rank < 40; rank += 2) {
    finding_of(report, rank, Check::kRoles) = failed(words, words);
  }
  const auto text = render_doctor(report, {});
  for (const auto& line : lines_of(text)) CHECK(line.size() <= 80);
  CHECK(text.find("word59") != std::string::npos);
}

TEST_CASE("the hosts of several nodes are listed") {
  auto report = report_of(4);
  report.nodes = 2;
  report.ranks[2].host = report.ranks[3].host = "beta";
  const auto text = render_doctor(report, {});
  CHECK(text.find("# host       alpha: ranks 0-1\n# host       beta: ranks 2-3\n") !=
        std::string::npos);
}

TEST_CASE("JSON has what each rank has found, with real numbers") {
  auto report = report_of(2);
  report.gpus = 1;
  report.ranks[1].role = Role::kInference;
  report.ranks[1].partner = 0;
  report.ranks[1].gpu = DeviceIdentity{{0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc}, 3, "H100"};
  finding_of(report, 1, Check::kOpenFiles) =
      with_value(failed("at most 9", "raise it"), "limit", 9);
  finding_of(report, 1, Check::kSpeed) = with_value(passed("fast"), "bytes_per_s", 1.5);
  const auto json = nlohmann::json::parse(render_doctor_json(report));
  CHECK(json["schema_version"] == 1);
  CHECK(json["command"] == "doctor");
  CHECK(json["ok"] == false);
  CHECK(json["exit_code"] == 1);
  CHECK(json["backend"] == "host");
  CHECK(json["world"]["ranks"] == 2);
  CHECK(json["error"].is_null());
  CHECK(json["ranks"][0]["gpu"].is_null());
  CHECK(json["ranks"][0]["role"].is_null());
  const auto& rank = json["ranks"][1];
  CHECK(rank["role"] == "inference");
  CHECK(rank["partner"] == 0);
  CHECK(rank["gpu"]["uuid"] == "GPU-12345678-9abc-0000-0000-000000000000");
  CHECK(rank["checks"].size() == kChecks);
  const auto& files = rank["checks"][static_cast<size_t>(Check::kOpenFiles)];
  CHECK(files["check"] == "open files");
  CHECK(files["verdict"] == "failed");
  CHECK(files["remedy"] == "raise it");
  CHECK(files["values"]["limit"].is_number_integer());
  CHECK(rank["checks"][static_cast<size_t>(Check::kSpeed)]["values"]["bytes_per_s"] == 1.5);
}

TEST_CASE("a report of what has not ended says so") {
  DoctorReport report;
  auto json = nlohmann::json::parse(render_doctor_json(report));
  CHECK(json["ok"] == false);
  CHECK(json["error"]["message"] == "the examination has not finished");
  report.error = Error(ExitCode::kDeadline, "rank 1 is late", "look at it");
  json = nlohmann::json::parse(render_doctor_json(report));
  CHECK(json["exit_code"] == 4);
  CHECK(json["error"]["hint"] == "look at it");
  CHECK(render_doctor(report, {}).find("has failed") != std::string::npos);
}
