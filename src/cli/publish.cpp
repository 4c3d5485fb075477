#include "cli/publish.hpp"

#include <unistd.h>

#include "base/log.hpp"

namespace awex {

ExitCode publish(const CommandEnd& end, ReportFiles& files, const Patience& patience) {
  auto code = end.code;
  if (end.error) log::error(*end.error);
  const auto attempt = [&code](const auto& write) {
    try {
      write();
    } catch (const Error& error) {
      // One error a command: the one that its exit code is of.
      if (code != ExitCode::kOk) return log::warning(error.what());
      log::error(error);
      code = error.code();
    }
  };
  files.be_patient(patience);
  attempt([&] { files.write(end.files); });
  attempt([&] {
    const Seconds longest = code == ExitCode::kDeadline ? Seconds(1) : patience.longest;
    write_all(STDOUT_FILENO, end.to_stdout, "stdout", {longest, patience.poll});
  });
  return code;
}

}  // namespace awex
