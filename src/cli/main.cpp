#include "base/open_files.hpp"
#include "cli/command_line.hpp"

int main(int argc, char** argv) {
  awex::raise_limit_of_open_files();
  return awex::run_command_line(argc, argv);
}
