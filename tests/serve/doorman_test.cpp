// Rank 0's door, as clients see it that keep to the protocol.
#include "serve/doorman.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "serve/client.hpp"
#include "support/temporary_directory.hpp"

namespace {

using namespace awex;

ClientRequest update() {
  ClientRequest request;
  request.errand = Errand::kUpdate;
  request.command.command = Command::kHandOver;
  return request;
}

Event done(ExitCode code) {
  Event event;
  event.exit_code = code;
  return event;
}

std::future<Event> ask(const std::string& directory, const ClientRequest& request,
                       std::vector<Event>* heard = nullptr) {
  return std::async(std::launch::async, [directory, request, heard] {
    NoMonitor nobody;
    return ask_job(
        directory, request, Seconds(5),
        [heard](const Event& event) {
          if (heard != nullptr) heard->push_back(event);
        },
        nobody);
  });
}

struct House {
  test::TemporaryDirectory root;
  std::string path = (root.path() / "job").string();
  StatusBoard board;
  JobDirectory directory{path};
  Doorman doorman{directory, board};
};

TEST_CASE("a command is queued, started and done") {
  House house;
  std::vector<Event> heard;
  auto answer = ask(house.path, update(), &heard);
  const auto visit = house.doorman.next(Seconds(5));
  REQUIRE(visit);
  CHECK(visit->request.errand == Errand::kUpdate);
  CHECK(visit->request.command.command == Command::kHandOver);
  Event phase;
  phase.kind = Event::Kind::kPhase;
  phase.phase = "transfer";
  house.doorman.tell(visit->client, phase);
  house.doorman.tell(visit->client, done(ExitCode::kMismatch));
  CHECK(answer.get().exit_code == ExitCode::kMismatch);
  REQUIRE(heard.size() == 3);
  CHECK(heard[0].kind == Event::Kind::kQueued);
  CHECK(heard[0].ahead == 0);
  CHECK(heard[1].kind == Event::Kind::kStarted);
  CHECK(heard[2].phase == "transfer");
}

}  // namespace
