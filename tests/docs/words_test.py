"""That the documentation says what the program says: messages, options, metrics, links.

usage: words_test.py SOURCE_FOLDER BUILD_FOLDER
"""

import pathlib
import re
import subprocess
import sys
import unittest

SOURCE = pathlib.Path()
BUILD = pathlib.Path()
LITERALS = re.compile(r'"(?:[^"\\\n]|\\.)*"(?:\s*"(?:[^"\\\n]|\\.)*")*')
LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"')
SPAN = re.compile(r"`([^`]+)`")


def literals():
    """What the program's source has between quotes, neighbours joined as the compiler does."""
    found = set()
    for path in sorted((SOURCE / "src").rglob("*.[ch]pp")):
        code = re.sub(r"(?m)^\s*//.*$", "", path.read_text(encoding="utf-8"))
        for run in LITERALS.findall(code):
            parts = [re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), part[1:-1]) for part in LITERAL.findall(run)]
            found.add("".join(parts))
    return found


def rows_of(text, heading):
    """The cells of the tables' rows below a heading, without the tables' heads."""
    section = text.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines()
            if line.startswith("| ")]
    return [row for row in rows if row[0] != "says" and not row[0].startswith("---")]


def document(name):
    return (SOURCE / name).read_text(encoding="utf-8")


class Words(unittest.TestCase):
    def test_every_message_that_the_failure_guide_quotes_is_the_programs(self):
        text = document("docs/failures.md")
        known = literals()
        self.assertGreater(len(known), 1000)
        headings = re.findall(r"(?m)^## (.*)$", text)
        self.assertEqual([re.match(r"Exit code (\d)", h)[1] for h in headings if h.startswith("Exit")], list("21345"))
        quoted = 0
        for heading in headings:
            for row in rows_of(text, heading):
                self.assertGreaterEqual(len(row), 2, row)
                for message in SPAN.findall(row[0]):
                    quoted += 1
                    parts = [part for part in re.split("…", message) if part.strip(' "():;,')]
                    pattern = re.compile(".*".join(map(re.escape, parts)), re.S)
                    self.assertTrue(any(pattern.search(literal) for literal in known), f"nothing says {message!r}")
        self.assertGreater(quoted, 45)

    def test_the_exit_codes_are_those_of_the_program(self):
        code = document("src/base/error.hpp")
        codes = {int(number) for number in re.findall(r"(?m)^  k\w+ = (\d),", code)}
        for name in ("README.md", "docs/failures.md"):
            self.assertEqual({int(n) for n in re.findall(r"(?m)^\| (\d) \| ", document(name))}, codes, name)

    def test_the_command_reference_is_the_programs_help(self):
        made = (BUILD / "src" / "cli" / "commands.md").read_text(encoding="utf-8")
        self.assertEqual(made, document("docs/commands.md"), "cp build/src/cli/commands.md docs/")

    def test_the_reference_has_every_option_of_every_help(self):
        reference = document("docs/commands.md")
        binary = str(BUILD / "awex-colocate")
        sections = dict(re.findall(r"(?ms)^## (\w+)\n(.*?)(?=^## |\Z)", reference))
        self.assertGreater(len(sections), 10)
        for command, section in sections.items():
            shown = subprocess.run([binary, command, "--help"], capture_output=True, text=True, check=True).stdout
            for option in re.findall(r"(?m)^  (-\S+)", shown):
                for name in option.split(","):
                    self.assertIn(f"`{name}`", section, command)

    def test_options_that_documents_name_are_there(self):
        known = set(re.findall(r"`(--?[a-z][\w-]*)`", document("docs/commands.md")))
        for name in ("docs/monitoring.md", "docs/concepts.md"):
            for span in SPAN.findall(document(name)):
                for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
                    self.assertIn(option, known, f"{name}: {span}")

    def test_metrics_and_events_are_those_of_the_program(self):
        text = document("docs/monitoring.md")
        code = document("src/cli/metrics.cpp")
        self.assertEqual(set(re.findall(r"awex_[a-z_]+", text)), set(re.findall(r'"(awex_[a-z_]+)"', code)))
        source = "".join(path.read_text(encoding="utf-8") for path in (SOURCE / "src").rglob("*.cpp"))
        told = set(SPAN.findall("".join(re.findall(r"(?m)^\| (`[a-z_`, ]+`) \|", text.split("## Metrics")[0]))))
        for event in told - {"time", "level", "rank", "host", "event", "message"}:
            self.assertIn(f'{{"{event}"', source, f"no event {event}")

    def test_links_lead_somewhere(self):
        for path in [SOURCE / "README.md", SOURCE / "CONTRIBUTING.md", *sorted((SOURCE / "docs").glob("*.md"))]:
            text = re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8"))
            for link in re.findall(r"\]\(([^)\s]+)\)", text):
                target, _, anchor = link.partition("#")
                if ":" in target:
                    continue
                file = path.parent / target if target else path
                self.assertTrue(file.exists(), f"{path.name}: {link}")
                if anchor and file.suffix == ".md":
                    heads = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8"))
                    names = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
                    self.assertIn(anchor, names, f"{path.name}: {link}")


if __name__ == "__main__":
    SOURCE, BUILD = map(pathlib.Path, sys.argv[1:3])
    unittest.main(argv=sys.argv[:1], verbosity=2)
