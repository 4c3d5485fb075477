"""What is generated of the program's help, and what `cmake --install` and CPack make of a build.

usage: install_test.py BINARY BUILD_FOLDER CMAKE
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BINARY = ""
BUILD = pathlib.Path()
SOURCE = pathlib.Path(__file__).parents[2]
CMAKE = ""

INSTALLED = (
    "bin/awex-colocate",
    "share/man/man1/awex-colocate.1",
    "share/bash-completion/completions/awex-colocate",
    "share/zsh/site-functions/_awex-colocate",
    "share/fish/vendor_completions.d/awex-colocate.fish",
    "share/doc/awex-colocate/README.md",
    "share/doc/awex-colocate/CHANGELOG.md",
    "share/doc/awex-colocate/LICENSE",
    "share/doc/awex-colocate/docs/design.md",
    "share/doc/awex-colocate/examples/slurm/one_node.sbatch",
    "include/awex_colocate.h",
)

# Below the folder of libraries.
INSTALLED_FOR_ENGINES = (
    "libawex_colocate.so.0.1.0",
    "pkgconfig/awex_colocate.pc",
    "cmake/awex_colocate/awex_colocateConfig.cmake",
    "cmake/awex_colocate/awex_colocateConfigVersion.cmake",
    "cmake/awex_colocate/awex_colocateTargets.cmake",
)

C_PROGRAM = """
#include <awex_colocate.h>
#include <stdio.h>
int main(void) {
  printf("%s\\n", awex_build());
  return awex_abi_version() == AWEX_ABI_VERSION ? 0 : 1;
}
"""
CMAKE_PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(uses_it LANGUAGES C)
find_package(awex_colocate 0.1 REQUIRED)
add_executable(program program.c)
target_link_libraries(program PRIVATE awex_colocate::engine)
"""


def output_of(*command, **settings):
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **settings)
    if result.returncode:
        raise AssertionError(f"{command}: exit code {result.returncode}: {result.stderr}")
    return result.stdout


def help_of(*command):
    return output_of(BINARY, *command, "--help")


def commands():
    """The names below the heading of the program's help."""
    below = help_of().split("Subcommands:\n")[1].split("\n\n")[0]
    return re.findall(r"(?m)^  ([a-z]\S*)", below)


def options(text):
    """The names at the beginning of the lines of a help."""
    names = []
    for line in re.findall(r"(?m)^  (-\S+)", text):
        names += line.split(",")
    return names


def generated(name):
    return (BUILD / "src" / "cli" / name).read_text(encoding="utf-8")


def bash_completes(*words):
    """What bash offers for the last of the words."""
    script = (
        f'source "{BUILD}/src/cli/awex-colocate.bash"; COMP_WORDS=("$@"); '
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _awex_colocate; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return output_of("bash", "--norc", "-c", script, "bash", "awex-colocate", *words).split()


def cached(name):
    """What the build folder was configured with."""
    cache = (BUILD / "CMakeCache.txt").read_text(encoding="utf-8")
    found = re.search(rf"(?m)^{name}:\w+=(.*)$", cache)
    return found.group(1) if found else ""


def with_paths_of_the_build(folder):
    """Files below the folder that name the folder of the sources or of the build; the documents may."""
    names = [f"{place}/".encode() for place in (SOURCE, BUILD.resolve())]
    files = [path for path in folder.rglob("*") if path.is_file() and "doc" not in path.relative_to(folder).parts]
    assert files, folder
    return [path for path in files if any(name in path.read_bytes() for name in names)]


def runpath(program):
    found = re.search(r"(?:RUNPATH|RPATH).*\[(.*)\]", output_of("readelf", "-d", str(program)))
    return found.group(1) if found else ""


def installed():
    return (*INSTALLED, *(f"{cached('CMAKE_INSTALL_LIBDIR')}/{path}" for path in INSTALLED_FOR_ENGINES))


class Generated(unittest.TestCase):
    def test_every_command_and_option_is_in_all_of_them(self):
        man = generated("awex-colocate.1").replace("\\-", "-")
        fish = generated("awex-colocate.fish")
        zsh = generated("_awex-colocate")
        self.assertGreater(len(commands()), 10)
        for command in commands():
            with self.subTest(command):
                section = re.search(rf'(?ms)^\.SS "{command}"\n.*?(?=^\.S[SH] )', man).group()
                of_fish = [line for line in fish.splitlines() if f"from {command}'" in line]
                of_zsh = re.search(rf"(?ms)^    {command}\)\n.*?;;", zsh).group()
                self.assertEqual(bash_completes(command[:-1]).count(command), 1)
                self.assertIn(f"__fish_use_subcommand' -a {command} ", fish)
                self.assertIn(f"'{command}:", zsh)
                names = options(help_of(command))
                self.assertIn("--help", names)
                self.assertEqual(sorted(bash_completes(command, "-")), sorted(names))
                for name in names:
                    self.assertIn(f"\\fB{name}\\fR", section)
                    self.assertIn(f"){name}'[".replace(")", ")'"), of_zsh)
                    flag = "-l" if name.startswith("--") else "-s"
                    wanted = f" {flag} {name.lstrip('-')} "
                    self.assertTrue(any(wanted in line for line in of_fish), wanted)

    def test_bash_completes_what_stands_next(self):
        self.assertEqual(sorted(bash_completes("re")), ["restore", "resume"])
        self.assertEqual(sorted(bash_completes("--v")), ["--version"])
        self.assertEqual(bash_completes("update", "--vers"), ["--versions"])
        self.assertEqual(bash_completes("update", "--versions", ""), [])
        self.assertEqual(bash_completes("update", "--backend", "h"), ["host"])
        self.assertEqual(bash_completes("update", "--backend", "=", "c"), ["cuda"])
        self.assertEqual(bash_completes("update", "--backend", "="), ["auto", "cuda", "host"])
        # Paths are left to bash.
        self.assertEqual(bash_completes("update", "--model", "/"), [])
        self.assertEqual(bash_completes("digest", "/"), [])
        self.assertEqual(bash_completes("nonsense", "-"), [])

    @unittest.skipUnless(shutil.which("groff"), "no groff")
    def test_the_man_page_has_no_faults(self):
        page = str(BUILD / "src" / "cli" / "awex-colocate.1")
        result = subprocess.run(
            ["groff", "-man", "-Tascii", "-ww", "-rLL=80n", page], capture_output=True, text=True, check=False
        )
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        text = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", result.stdout)
        for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS", "EXAMPLES", "EXIT CODES"):
            self.assertRegex(text, rf"(?m)^{heading}$")

    def test_other_shells_take_the_scripts(self):
        for shell, name in (("bash", "awex-colocate.bash"), ("zsh", "_awex-colocate"), ("fish", "awex-colocate.fish")):
            if shutil.which(shell):
                output_of(shell, "-n", str(BUILD / "src" / "cli" / name))


class Help(unittest.TestCase):
    def test_help_is_a_command(self):
        self.assertEqual(output_of(BINARY, "help"), help_of())
        for command in commands():
            self.assertEqual(output_of(BINARY, "help", command), help_of(command))
        wrong = subprocess.run([BINARY, "help", "updat"], capture_output=True, text=True, check=False)
        self.assertEqual((wrong.returncode, wrong.stdout), (2, ""))
        self.assertIn('unknown command "updat"', wrong.stderr)
        self.assertIn('"update"', wrong.stderr)

    def test_version_has_a_short_name(self):
        self.assertEqual(output_of(BINARY, "-V"), output_of(BINARY, "--version"))

    def test_examples_are_about_their_command_and_use_its_options(self):
        of = {command: help_of(command) for command in commands()}
        for command, text in of.items():
            examples = text.split("Examples:\n")[1].replace("\\\n", "")
            own = 0
            for line in examples.splitlines():
                for name, rest in re.findall(r"awex-colocate ([a-z]+)([^&]*)", line):
                    own += name == command
                    for option in re.findall(r" (--[a-z0-9-]+)", rest):
                        self.assertIn(option, options(of[name]), line)
            self.assertGreater(own, 0, text)

    def test_help_fits_80_columns(self):
        for text in (help_of(), *(help_of(command) for command in commands())):
            for line in text.splitlines():
                self.assertLessEqual(len(line), 80, line)


class Install(unittest.TestCase):
    def test_installs_and_uninstalls(self):
        with tempfile.TemporaryDirectory() as directory:
            # A manifest of its own: the build folder's may be a user's.
            build = pathlib.Path(directory, "build")
            build.mkdir()
            prefix = pathlib.Path(directory, "prefix")
            (prefix / "bin").mkdir(parents=True)
            (prefix / "bin" / "other").touch()
            output_of(CMAKE, "--install", str(BUILD), "--prefix", str(prefix))
            shutil.move(BUILD / "install_manifest.txt", build)
            for path in installed():
                self.assertTrue((prefix / path).is_file(), path)
            self.assertEqual(output_of(str(prefix / "bin" / "awex-colocate"), "-V"), output_of(BINARY, "-V"))
            self.assertEqual(with_paths_of_the_build(prefix), [])
            self.check_that_c_programs_find_it(prefix, build)
            script = SOURCE / "cmake" / "Uninstall.cmake"
            output_of(CMAKE, f"-DMANIFEST={build}/install_manifest.txt", "-P", str(script))
            left = [str(path.relative_to(prefix)) for path in prefix.rglob("*") if not path.is_dir()]
            self.assertEqual(left, ["bin/other"])
            self.assertEqual(list(prefix.rglob("share/doc/*")), [])

    def check_that_c_programs_find_it(self, prefix, folder):
        """By CMake and by pkg-config, also where it was moved to another place."""
        library = cached("CMAKE_INSTALL_LIBDIR")
        prefix = shutil.move(prefix, folder.parent / "moved")
        (folder / "program.c").write_text(C_PROGRAM, encoding="utf-8")
        (folder / "CMakeLists.txt").write_text(CMAKE_PROJECT, encoding="utf-8")
        # A sanitized library needs a sanitized program.
        sanitize = cached("AWEX_SANITIZE")
        flags = [f"-fsanitize={sanitize}"] if sanitize else []
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "LD_LIBRARY_PATH": f"{prefix}/{library}"}
        tree = str(folder / "tree")
        found = (f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_C_FLAGS={' '.join(flags)}")
        output_of(CMAKE, "-G", "Ninja", "-S", str(folder), "-B", tree, *found)
        output_of(CMAKE, "--build", tree)
        by_cmake = output_of(f"{tree}/program", env={**environment, "LD_LIBRARY_PATH": ""})
        self.assertRegex(by_cmake, r"^0\.1\.0\+[gs][0-9a-f]{12}")
        self.assertIn(by_cmake.strip(), output_of(BINARY, "-V"))
        if shutil.which("pkg-config"):
            path = {**os.environ, "PKG_CONFIG_PATH": f"{prefix}/{library}/pkgconfig"}
            words = output_of("pkg-config", "--cflags", "--libs", "awex_colocate", env=path).split()
            program = str(folder / "by_pkg_config")
            output_of("cc", *flags, str(folder / "program.c"), "-o", program, *words)
            self.assertEqual(output_of(program, env=environment), by_cmake)
        shutil.move(prefix, folder.parent / "prefix")

    @unittest.skipUnless(shutil.which("dpkg-shlibdeps") and shutil.which("dpkg-deb"), "no dpkg-dev")
    def test_the_debian_package_holds_what_is_installed(self):
        if "cuda" in output_of(BINARY, "-V"):
            self.skipTest("NVIDIA's libraries are often no packages, which dpkg-shlibdeps refuses")
        with tempfile.TemporaryDirectory() as directory:
            cpack = str(pathlib.Path(CMAKE).with_name("cpack"))
            config = str(BUILD / "CPackConfig.cmake")
            # Fast compression: the content is what counts.
            fast = "-DCPACK_DEBIAN_COMPRESSION_TYPE=gzip"
            packer = {"DEBFULLNAME": "Jane Doe", "DEBEMAIL": "jane@example.org"}
            output_of(cpack, "--config", config, "-G", "DEB", "-B", directory, fast, env={**os.environ, **packer})
            package = next(pathlib.Path(directory).glob("awex-colocate_*.deb"))
            about = output_of("dpkg-deb", "-I", str(package))
            for library in ("openmpi-bin", "libopenmpi3", "libhwloc15", "libc6", "libstdc++6"):
                self.assertRegex(about, rf"(?m)^ Depends: .*\b{re.escape(library)}")
            self.assertRegex(about, r"(?m)^ Description: \S.*\n  \S")
            self.assertRegex(about, r"(?m)^ Maintainer: Jane Doe <jane@example\.org>$")
            # Of -V, with the commit's time before the commit where there is git.
            number, build = re.search(r" (\S+)\+(\S+) ", output_of(BINARY, "-V")).groups()
            time = r"\d{14}\." if build.startswith("g") else ""
            self.assertRegex(about, rf"(?m)^ Version: {re.escape(number)}\+{time}{re.escape(build)}$")
            unpacked = pathlib.Path(directory, "unpacked")
            output_of("dpkg-deb", "-x", str(package), str(unpacked))
            self.assertEqual(with_paths_of_the_build(unpacked), [])
            self.assertEqual(runpath(unpacked / "usr/bin/awex-colocate"), "")
            content = output_of("dpkg-deb", "-c", str(package))
            files = set(re.findall(r"(?m)^-\S+ root/root .* \./(usr/\S+)$", content))
            wanted = {"usr/" + path for path in installed()}
            doc = "usr/share/doc/awex-colocate/"
            wanted -= {doc + "LICENSE", doc + "CHANGELOG.md", "usr/share/man/man1/awex-colocate.1"}
            wanted |= {doc + "copyright", doc + "changelog.gz", "usr/share/man/man1/awex-colocate.1.gz"}
            self.assertEqual(wanted - files, set())


if __name__ == "__main__":
    BINARY = sys.argv[1]
    BUILD = pathlib.Path(sys.argv[2])
    CMAKE = sys.argv[3]
    os.environ["LC_ALL"] = "C"
    unittest.main(argv=sys.argv[:1])
