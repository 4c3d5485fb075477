#!/usr/bin/env python3
"""The recipes in containers/ against each other and against the sources, as building them needs a registry; and
what scripts share.

usage: containers_test.py SOURCE_FOLDER
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path()
# What is not packed, and builds nothing.
LEFT_OUT = {"tests", "CONTRIBUTING.md"}


def text(name):
    return (SOURCE / "containers" / name).read_text(encoding="utf-8")


def files_of_apptainer():
    section = re.search(r"(?ms)^%files\n(.*?)\n\n", text("awex-colocate.def")).group(1)
    return [line.split() for line in section.splitlines()]


def top_level():
    """The folders and files of the sources, as git has them, or all where there is no git."""
    listed = []
    if shutil.which("git") and (SOURCE / ".git").exists():
        git = ["git", "-c", "safe.directory=*", "-C", str(SOURCE), "ls-files"]
        listed = subprocess.run(git, text=True, capture_output=True, check=True).stdout.splitlines()
    names = {path.split("/")[0] for path in listed} or {path.name for path in SOURCE.iterdir()}
    return {name for name in names if not name.startswith((".", "build"))}


class Recipes(unittest.TestCase):
    def test_apptainer_copies_all_that_builds(self):
        copied = files_of_apptainer()
        for source, target in copied:
            self.assertEqual(target, f"/src/{source}")
        self.assertEqual({source for source, _ in copied}, top_level() - LEFT_OUT | {".git"})

    def test_both_are_of_the_same_images_and_environment(self):
        docker, apptainer = text("Dockerfile"), text("awex-colocate.def")
        cuda = re.search(r"(?m)^ARG CUDA=(.+)$", docker).group(1)
        for name in ("BUILD_BASE", "RUNTIME_BASE"):
            image = re.search(rf"(?m)^ARG {name}=docker\.io/(.+)$", docker).group(1).replace("${CUDA}", cuda)
            self.assertEqual(re.search(rf"(?m)^    {name}=(.+)$", apptainer).group(1), image)
        setting = r"((?:OMPI|PMIX)_MCA_\w+=\w+)"
        of_docker = re.search(r"(?m)^ENV ((?:.*\\\n)*.*)$", docker).group(1)
        of_apptainer = re.search(r"(?ms)^%environment\n(.*?)\n\n", apptainer).group(1)
        self.assertEqual(sorted(re.findall(setting, of_docker)), sorted(re.findall(setting, of_apptainer)))
        self.assertIn("OMPI_MCA_", of_docker)

    def test_builds_are_not_sent_to_docker(self):
        ignored = (SOURCE / ".dockerignore").read_text(encoding="utf-8").split("\n")
        for line in (SOURCE / ".gitignore").read_text(encoding="utf-8").split():
            line = line.rstrip("/")
            self.assertTrue({line, f"**/{line}"} & set(ignored), line)


class Scripts(unittest.TestCase):
    """Scripts that install, with stand-ins for what they call; and what scripts share."""

    def have(self, *programs):
        """What `have` of scripts/common.sh says of the programs."""
        code = 'source scripts/common.sh; have "$@"'
        return subprocess.run(["bash", "-c", code, "bash", *programs], cwd=SOURCE, check=False).returncode == 0

    def test_programs_are_there_only_when_all_of_them_are(self):
        self.assertTrue(self.have("bash", "sh"))
        self.assertFalse(self.have("bash", "no-such-program"))
        self.assertFalse(self.have("no-such-program", "bash"))

    def test_packing_installs_what_cpack_calls(self):
        """Where nothing is installed yet."""
        with tempfile.TemporaryDirectory() as folder:
            for name, does in (("apt-get", 'echo "$@"'), ("sudo", 'exec "$@"'), ("dpkg-query", "exit 1"),
                               ("cmake", "echo cmake version 3.25.1")):
                program = pathlib.Path(folder, name)
                program.write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
                program.chmod(0o755)
            told = subprocess.run(["scripts/install-packages.sh", "--package"], cwd=SOURCE, text=True, check=True,
                                  env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True).stdout.splitlines()
            installed = told[1].split("--no-install-recommends ")[1].split()
            self.assertLessEqual({"file", "dpkg-dev", "g++"}, set(installed))

    def test_a_package_and_a_wheel_are_what_the_image_gets(self):
        """install.sh with a stand-in for apt-get, which says what it was told."""
        with tempfile.TemporaryDirectory() as folder:
            at = pathlib.Path(folder)
            (at / "bin").mkdir()
            for name in ("apt-get", "rm", "install"):
                program = at / "bin" / name
                program.write_text(f'#!/bin/sh\necho {name} "$@"\n', encoding="utf-8")
                program.chmod(0o755)
            for name in ("awex-colocate_1_amd64.deb", "awex_colocate-1-py3-none-any.whl"):
                (at / name).touch()
            for packages in ("", "libnccl2=2.27.7-1+cuda13.0\n"):
                (at / "packages").write_text(packages, encoding="utf-8")
                script = str(SOURCE / "containers" / "install.sh")
                told = subprocess.run([script, folder], env={"PATH": f"{at}/bin:/usr/bin:/bin"}, text=True, check=True,
                                      capture_output=True).stdout.splitlines()
                wanted = " ".join([f"{at}/awex-colocate_1_amd64.deb", *packages.split()])
                self.assertEqual(told[1], f"apt-get install -qq -y --no-install-recommends {wanted}")
                self.assertEqual(told[-1], f"install -D -m 644 -t /usr/share/awex-colocate {at}/awex_colocate-1-py3-none-any.whl")


if __name__ == "__main__":
    SOURCE = pathlib.Path(sys.argv[1])
    unittest.main(argv=sys.argv[:1])
