#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "cycle/options.hpp"

/// What clients and a resident job say to each other over its socket: JSON objects, one a line. A
/// client sends one ClientRequest and reads events until kDone; closing the connection before that
/// is going away.

namespace awex {

/// Raised with every change that an older client or job would misread.
inline constexpr int kProtocolVersion = 1;
/// A table is no wider.
inline constexpr uint64_t kMostColumns = 500;
/// Of a request's line, its newline included. Events may be longer.
inline constexpr size_t kLongestRequest = 16 << 10;

/// What a client wants done.
enum class Errand : uint8_t { kUpdate, kOffload, kTransfer, kResume, kRestore, kStatus, kStop };

/// "update", …, as the command that asks for it is called.
[[nodiscard]] const char* errand_name(Errand errand);

/// How the client wants the report of a command: the job renders it, as its commands do that end
/// with it.
struct Rendering {
  bool table = true;  ///< For a person, drawn as the next three say.
  bool unicode = false;
  bool color = false;
  uint64_t columns = 80;  ///< That it may be wide, from 1 to kMostColumns.
  bool json = false;
  bool trace = false;
};

struct ClientRequest {
  Errand errand = Errand::kStatus;
  CommandOptions command;             ///< Of an errand that is a command of the cycle.
  bool cancel_on_disconnect = false;  ///< A client that goes away takes its command with it.
  Rendering rendering;
};

/// A line, newline included.
[[nodiscard]] std::string encode(const ClientRequest& request);
/// The reverse, of a line without its newline. It may be anything: throws request errors that say
/// what is wrong, also for another protocol version.
[[nodiscard]] ClientRequest decode_request(std::string_view line);

/// What the job tells a client.
struct Event {
  enum class Kind : uint8_t {
    kQueued,   ///< `ahead` other commands come first.
    kStarted,  ///< The command has begun.
    kPhase,    ///< A phase of it has begun (no `seconds`) or is over.
    kDone,     ///< Nothing follows.
  };
  Kind kind = Kind::kDone;

  uint64_t ahead = 0;

  std::string phase;  ///< Of kPhase, as in PhaseReport.
  std::string role;
  std::string tag;
  std::optional<double> seconds;
  uint64_t bytes = 0;

  ExitCode exit_code = ExitCode::kOk;  ///< Of kDone: the client's.
  std::optional<Error> error;          ///< Of kDone, with its context and hint.
  std::string table;                   ///< Of kDone: what the rendering asked for; empty else.
  std::string json;
  std::string trace;
  std::string status;  ///< Of kDone: the answer to kStatus, render_status_json.
};

[[nodiscard]] std::string encode(const Event& event);
/// Throws run-time errors: a job that talks otherwise is another program.
[[nodiscard]] Event decode_event(std::string_view line);

}  // namespace awex
