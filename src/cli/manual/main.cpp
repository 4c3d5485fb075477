// Writes what tells of the program's options: the man page, completions and docs/commands.md.
// usage: awex-manual FOLDER VERSION

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>

#include "cli/manual/commands_page.hpp"
#include "cli/manual/completions.hpp"
#include "cli/manual/man_page.hpp"
#include "cli/program.hpp"

namespace {

void write(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  if (!file) throw std::runtime_error("cannot write " + path);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fputs("usage: awex-manual FOLDER VERSION\n", stderr);
    return 2;
  }
  try {
    CLI::App root;
    const auto commands = awex::describe_program(root);
    const auto words = awex::words_of(root);
    const std::string folder = std::string(argv[1]) + "/";
    write(folder + "awex-colocate.1", awex::render_man_page(words, argv[2]));
    write(folder + "awex-colocate.bash", awex::render_bash_completion(words));
    write(folder + "_awex-colocate", awex::render_zsh_completion(words));
    write(folder + "awex-colocate.fish", awex::render_fish_completion(words));
    write(folder + "commands.md", awex::render_commands_page(words));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: awex-manual: %s\n", error.what());
    return 1;
  }
}
