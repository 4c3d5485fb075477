#include "cli/options.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "cli/client_options.hpp"
#include "cli/job_options.hpp"
#include "cli/wrapped_text.hpp"
#include "support/temporary_directory.hpp"

namespace awex {
namespace {

/// Options as the program would parse them.
JobArguments parsed(std::vector<std::string> arguments, Command command = Command::kUpdate) {
  JobArguments options;
  CLI::App parser("test", command_name(command));
  parser.allow_extras();
  add_job_options(parser, command, options);
  std::reverse(arguments.begin(), arguments.end());
  parser.parse(arguments);
  refuse_unknown_arguments(parser);
  complete_job_options(parser, options);
  return options;
}

struct Refusal {
  std::string message;
  std::string hint;
};

Refusal refusal(const std::vector<std::string>& arguments, Command command = Command::kUpdate) {
  try {
    (void)parsed(arguments, command);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kRequest);
    return {error.what(), error.hint()};
  }
  FAIL_CHECK("the options were taken");
  return {};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A config file with a text.
class Config {
 public:
  explicit Config(const std::string& text) : path_(directory_.path() / "run.json") {
    std::ofstream(path_) << text;
  }
  [[nodiscard]] std::string path() const { return path_; }

 private:
  test::TemporaryDirectory directory_;
  std::filesystem::path path_;
};

TEST_CASE("only the model must be given") {
  const auto run = parsed({"--model", "preset:tiny-dense"}).request;
  CHECK(run.job.model.is_preset());
  CHECK(run.job.model.name() == "tiny-dense");
  CHECK(!run.job.layers);
  CHECK(run.job.trainer.text() == "megatron:tp=1");
  CHECK(run.job.inference.text() == "sglang:tp=1");
  CHECK(!run.job.role);
  CHECK(!run.job.backend);
  CHECK(run.job.optimizer);
  CHECK(run.job.kv_cache_bytes == 64 * 1024 * 1024);
  CHECK(run.command.versions == 1);
  CHECK(run.job.timeout == Seconds(300));
  CHECK(run.command.verify == Verify::kDigest);
  CHECK(run.job.offload);
  CHECK(!run.job.share_gpu);
  CHECK(!run.job.gpu_memory);
  CHECK(run.job.measure_limits);
  CHECK_FALSE(run.job.warm_host_memory);
  CHECK(refusal({}).message == "--model is missing");
}

TEST_CASE("every option arrives where it belongs") {
  const auto options = parsed({"--model",
                               "m",
                               "--layers",
                               "4",
                               "--trainer",
                               "megatron:tp=2",
                               "--inference=hf",
                               "--role",
                               "inference",
                               "--backend",
                               "host",
                               "--optimizer",
                               "none",
                               "--kv-cache",
                               "2GiB",
                               "--versions",
                               "9",
                               "--timeout",
                               "500ms",
                               "--verify",
                               "full",
                               "--no-offload",
                               "--warm-host-memory",
                               "--share-gpu",
                               "--gpu-memory",
                               "80GB",
                               "--limits",
                               "off",
                               "--json",
                               "-",
                               "--trace",
                               "t.json",
                               "-v",
                               "--color",
                               "never"});
  CHECK(options.request.job.model.name() == "m");
  CHECK(options.request.job.layers == std::optional<uint64_t>(4));
  CHECK(options.request.job.trainer.text() == "megatron:tp=2");
  CHECK(options.request.job.inference.text() == "hf");
  CHECK((options.request.job.role == Role::kInference));
  CHECK((options.request.job.backend == BackendKind::kHost));
  CHECK(!options.request.job.optimizer);
  CHECK(options.request.job.kv_cache_bytes == uint64_t{2} << 30);
  CHECK(options.request.command.versions == 9);
  CHECK(options.request.job.timeout == Seconds(0.5));
  CHECK(options.request.command.verify == Verify::kFull);
  CHECK(!options.request.job.offload);
  CHECK(options.request.job.share_gpu);
  CHECK(options.request.job.gpu_memory == std::optional<uint64_t>(80'000'000'000));
  CHECK(!options.request.job.measure_limits);
  CHECK(options.request.job.warm_host_memory);
  CHECK(options.json_path == "-");
  CHECK(options.trace_path == "t.json");
  CHECK(options.talk.level == log::Level::kVerbose);
  CHECK((options.talk.color == Color::kNever));
  CHECK((parsed({"--model", "m", "--backend", "cuda"}).request.job.backend == BackendKind::kCuda));
  CHECK(!parsed({"--model", "m", "--backend", "auto"}).request.job.backend);
}

TEST_CASE("the command line wins over the config file, which wins over the defaults") {
  const Config config(
      R"({"model": "from-file", "versions": 3, "timeout": 1.5, "no-offload": true,
          "share-gpu": false, "verify": "off", "kv-cache": "1MiB"})");
  const auto run = parsed({"--versions", "5", "--config", config.path(), "--verify=full"}).request;
  CHECK(run.job.model.name() == "from-file");
  CHECK(run.command.versions == 5);
  CHECK(run.job.timeout == Seconds(1.5));
  CHECK(!run.job.offload);
  CHECK(!run.job.share_gpu);
  CHECK(run.command.verify == Verify::kFull);
  CHECK(run.job.kv_cache_bytes == 1 << 20);
  CHECK(run.job.inference.text() == "sglang:tp=1");
}

TEST_CASE("of options that exclude each other the command line's wins, and a file has one") {
  const Config quiet(R"({"model": "m", "quiet": true})");
  CHECK(parsed({"--config", quiet.path()}).talk.level == log::Level::kQuiet);
  CHECK(parsed({"--config", quiet.path(), "-v"}).talk.level == log::Level::kVerbose);
  const Config one(R"({"model": "m", "quiet": false, "verbose": true})");
  CHECK(parsed({"--config", one.path()}).talk.level == log::Level::kVerbose);
  const Config both(R"({"model": "m", "quiet": true, "verbose": true})");
  CHECK(refusal({"--config", both.path()}).message ==
        both.path() + ": \"verbose\": excludes \"quiet\", which is set too");
  CHECK(parsed({"--config", both.path(), "-q"}).talk.level == log::Level::kQuiet);
}

TEST_CASE("an unknown key of the config file is named with file and nearest key") {
  const Config typo(R"({"model": "m", "version": 3})");
  const auto first = refusal({"--config", typo.path()});
  CHECK(first.message == typo.path() + ": \"version\": unknown key");
  CHECK(first.hint == "did you mean \"versions\"?");

  const Config underscore(R"({"kv_cache": "1GiB"})");
  CHECK(refusal({"--config", underscore.path()}).hint == "did you mean \"kv-cache\"?");

  const Config nested(R"({"config": "other.json"})");
  CHECK(contains(refusal({"--config", nested.path()}).message, "unknown key"));

  const Config of_update(R"({"model": "m", "versions": 3})");
  CHECK(contains(refusal({"--config", of_update.path()}, Command::kResume).message,
                 "\"versions\": unknown key"));
}

TEST_CASE("a config file that is none is refused with its name") {
  CHECK(contains(refusal({"--config", "/nonexistent/run.json"}).message, "/nonexistent/run.json"));
  CHECK(contains(refusal({"--config", "/"}).message, "regular file"));
  const Config broken(R"({"model": )");
  CHECK(contains(refusal({"--config", broken.path()}).message, broken.path()));
  const Config twice(R"({"model": "a", "model": "b"})");
  CHECK(contains(refusal({"--config", twice.path()}).message, "model"));
  const Config array("[1, 2]");
  CHECK(contains(refusal({"--config", array.path()}).message, "not an object"));
}

TEST_CASE("a wrong value in a config file is named with its key") {
  const Config size(R"({"kv-cache": "8 bananas"})");
  CHECK(contains(refusal({"--config", size.path()}).message, "\"8 bananas\" is not a size"));
  CHECK(contains(refusal({"--config", size.path()}).message, "\"kv-cache\""));
  const Config flag(R"({"share-gpu": "yes"})");
  CHECK(contains(refusal({"--config", flag.path()}).message, "\"yes\" is no value for a switch"));
  for (const char* text : {R"({"model": null})", R"({"model": ["m"]})", R"({"model": {}})",
                           R"({"model": true})", R"({"versions": -1})", R"({"versions": 1.5})",
                           R"({"versions": 1e30})", R"({"layers": 0})"}) {
    CAPTURE(text);
    const Config config(text);
    CHECK(!refusal({"--config", config.path()}).message.empty());
  }
}

TEST_CASE("an unknown option is named with the nearest one") {
  const auto typo = refusal({"--model", "m", "--timout", "3s"});
  CHECK(typo.message == "unknown option \"--timout\"");
  CHECK(typo.hint == "did you mean \"--timeout\"?");
  CHECK(refusal({"--modle=m"}).hint == "did you mean \"--model\"?");
  CHECK(contains(refusal({"--model", "m", "--frobnicate"}).hint, "--help"));
  CHECK(refusal({"--model", "m", "stray"}).message == "unknown argument \"stray\"");
  CHECK(contains(refusal({"--model", "m", "--versions", "2"}, Command::kOffload).message,
                 "unknown option \"--versions\""));
  CHECK(contains(refusal({"--model", "m", "--no-offload"}, Command::kTransfer).message,
                 "unknown option \"--no-offload\""));
}

TEST_CASE("a wrong value is named with its option and what would be right") {
  const auto check = [](const char* option, const char* value, const char* said) {
    CAPTURE(option);
    CAPTURE(value);
    const auto refused = refusal({"--model", "m", std::string(option) + "=" + value});
    CHECK(contains(refused.message, std::string(option) + ": "));
    CHECK(contains(refused.message, said));
    CHECK(!refused.hint.empty());
  };
  check("--kv-cache", "8XB", "\"8XB\" is not a size");
  check("--kv-cache", "-1", "is not a size");
  check("--gpu-memory", "lots", "is not a size");
  check("--timeout", "0s", "is not a duration");
  check("--timeout", "5 parsecs", "is not a duration");
  check("--layers", "0", "\"0\" is not a count");
  check("--layers", "3.5", "is not a count");
  check("--versions", "99999999999999999999", "is not a count");
  check("--versions", "2x", "is not a count");
  check("--role", "traner", "is none of trainer, inference");
  check("--backend", "rocm", "is none of auto, cuda, host");
  check("--verify", "digests", "is none of digest, full, off");
  check("--limits", "yes", "is none of on, off");
  check("--optimizer", "adam", "is none of adamw, none");
  check("--color", "blue", "is none of auto, always, never");
  CHECK(refusal({"--model", "m", "--role", "traner"}).hint == "did you mean \"trainer\"?");
}

TEST_CASE("outputs that would overwrite each other are refused") {
  CHECK(contains(refusal({"--model", "m", "--json", "a", "--trace", "a"}).message, "both name"));
  CHECK(contains(refusal({"--model", "m", "--trace", "-"}).message, "--trace"));
}

/// What a command with --job asks for.
ClientTask asked(std::vector<std::string> arguments, Command command) {
  JobArguments job;
  ClientArguments client;
  CLI::App parser("test", command_name(command));
  add_job_options(parser, command, job);
  add_client_options(parser, command, client);
  std::reverse(arguments.begin(), arguments.end());
  parser.parse(arguments);
  check_client_options(parser, client);
  return make_client_task(client, job);
}

TEST_CASE("with --job a command is half of an update, or the memory that was named") {
  const auto update = asked({"--job", "d", "--wait", "2s", "--json", "r", "-q"}, Command::kUpdate);
  CHECK(update.directory == "d");
  CHECK(update.patience == Seconds(2));
  CHECK(update.json_path == "r");
  CHECK(update.talk.level == log::Level::kQuiet);
  CHECK((update.request.errand == Errand::kUpdate));
  CHECK((update.request.command.command == Command::kHandOver));
  CHECK(update.request.command.train);
  CHECK_FALSE(update.request.cancel_on_disconnect);
  CHECK((asked({"--job", "d"}, Command::kResume).request.command.command == Command::kTakeBack));
  CHECK(asked({"--job", "d", "--wait", "0"}, Command::kResume).patience == Seconds(0));

  const auto part = asked({"--job", "d", "--tag", "kv_cache"}, Command::kResume).request;
  CHECK((part.errand == Errand::kResume));
  CHECK((part.command.command == Command::kResume));
  REQUIRE(part.command.scope);
  CHECK((*part.command.scope == Scope{std::nullopt, {false, false, true}}));
  const auto role = asked({"--job", "d", "--role", "trainer"}, Command::kOffload).request;
  REQUIRE(role.command.scope);
  CHECK((*role.command.scope == Scope{Role::kTrainer, {true, true, true}}));
  CHECK_FALSE(asked({"--job", "d"}, Command::kOffload).request.command.scope);
}

TEST_CASE("lines break between words, behind what stands before them") {
  CHECK(wrapped("", 10, 2).empty());
  CHECK(wrapped("one two three", 80, 4) == "one two three");
  CHECK(wrapped("one two three", 9, 2) == "one two\n  three");
  CHECK(wrapped("one two three", 8, 2) == "one\n  two\n  three");
  CHECK(wrapped("a verylongword b", 6, 0) == "a\nverylongword\nb");
  CHECK(wrapped("one\ntwo three", 80, 3) == "one\n   two three");
}

/// Sets an environment variable for a scope; null unsets it.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    if (const char* old = ::getenv(name)) old_ = old;
    value != nullptr ? ::setenv(name, value, 1) : ::unsetenv(name);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  Environment(Environment&&) = delete;
  Environment& operator=(Environment&&) = delete;
  ~Environment() { old_ ? ::setenv(name_, old_->c_str(), 1) : ::unsetenv(name_); }

 private:
  const char* name_;
  std::optional<std::string> old_;
};

/// A terminal of our own.
class Terminal {
 public:
  Terminal() : controller_(::posix_openpt(O_RDWR | O_NOCTTY)) {
    REQUIRE(controller_ >= 0);
    REQUIRE(::grantpt(controller_) == 0);
    REQUIRE(::unlockpt(controller_) == 0);
    terminal_ = ::open(::ptsname(controller_), O_RDWR | O_NOCTTY);
    REQUIRE(terminal_ >= 0);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;
  Terminal(Terminal&&) = delete;
  Terminal& operator=(Terminal&&) = delete;
  ~Terminal() {
    ::close(terminal_);
    ::close(controller_);
  }
  [[nodiscard]] int fd() const { return terminal_; }

 private:
  int controller_;
  int terminal_ = -1;
};

TEST_CASE("colour follows the option, then NO_COLOR, TERM and the terminal") {
  const Terminal terminal;
  const Environment term("TERM", "xterm");
  const Environment unset("NO_COLOR", nullptr);
  CHECK(use_color(Color::kAuto, terminal.fd()));
  CHECK(!use_color(Color::kNever, terminal.fd()));
  {
    const Environment empty("NO_COLOR", "");
    CHECK(use_color(Color::kAuto, terminal.fd()));
  }
  {
    const Environment no_color("NO_COLOR", "1");
    CHECK(!use_color(Color::kAuto, terminal.fd()));
    CHECK(use_color(Color::kAlways, terminal.fd()));
  }
  {
    const Environment dumb("TERM", "dumb");
    CHECK(!use_color(Color::kAuto, terminal.fd()));
  }
  const test::TemporaryDirectory directory;
  const auto path = directory.path() / "file";
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT, 0600));
  CHECK(!use_color(Color::kAuto, file.get()));
  CHECK(use_color(Color::kAlways, file.get()));
}

}  // namespace
}  // namespace awex
