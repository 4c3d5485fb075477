#include "cli/client_progress.hpp"

#include <fmt/format.h>

#include <utility>

#include "base/log.hpp"
#include "base/log_fact.hpp"

namespace awex {
namespace {

/// How often the time that something takes is told: it moves on a terminal.
constexpr double kRedrawSeconds = 1;
constexpr double kLineSeconds = 10;

std::string queue_text(uint64_t ahead) {
  if (ahead == 0) return "queued";
  return fmt::format("queued, {} {} first", ahead,
                     ahead == 1 ? "other command comes" : "other commands come");
}

}  // namespace

ClientProgress::ClientProgress(std::string command) : command_(std::move(command)), line_(true) {
  enter("waiting for the job");
}

void ClientProgress::enter(const std::string& doing) {
  doing_ = doing;
  since_ = {};
  next_line_s_ = line_.moves() ? kRedrawSeconds : kLineSeconds;
  line_.draw(fmt::format("{}: {} ...", command_, doing_));
}

void ClientProgress::hear(const Event& event) {
  switch (event.kind) {
    case Event::Kind::kQueued:
      enter(queue_text(event.ahead));
      if (!line_.moves() && event.ahead > 0) {
        log::note(fmt::format("{}: {}", command_, doing_),
                  {"queued", {{"command", command_}, {"ahead", event.ahead}}});
      }
      return;
    case Event::Kind::kStarted:
      return enter("begun");
    case Event::Kind::kPhase: {
      const auto subject = phase_subject(event.phase, event.role, event.tag);
      if (!event.seconds) return enter(subject);
      log::detail(
          fmt::format("{}: {}: {}", command_, subject, phase_outcome(*event.seconds, event.bytes)),
          {"phase",
           {{"command", command_},
            {"phase", event.phase},
            {"role", event.role},
            {"tag", text_or_null(event.tag)},
            {"seconds", *event.seconds},
            {"bytes", event.bytes}}});
      return;
    }
    case Event::Kind::kDone:
      return;
  }
}

void ClientProgress::tick() {
  if (since_.seconds() < next_line_s_) return;
  const auto text = fmt::format("{}: {}, for {:.0f} s", command_, doing_, since_.seconds());
  if (line_.moves()) {
    line_.draw(text + " ...");
  } else {
    log::note(text, {"waiting", {{"command", command_}, {"seconds", since_.seconds()}}});
  }
  next_line_s_ += line_.moves() ? kRedrawSeconds : kLineSeconds;
}

}  // namespace awex
