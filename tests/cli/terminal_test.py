"""What awex-colocate writes for a person: that it fits their terminal, and that hints lead right.

usage: terminal_test.py BINARY MPIEXEC
"""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import unittest

BINARY = ""
MPIEXEC = ""
COMMANDS = ("update", "offload", "transfer", "resume", "serve", "status", "stop", "restore", "plan", "checkpoint",
            "digest", "doctor", "help")
LONG = ("--model", "preset:tiny-moe", "--trainer", "megatron:tp=2,pp=2,ep=2,etp=1",
        "--inference", "sglang:tp=2,ep=2,dtype=bf16,router_dtype=fp32")


def environment(**changes):
    variables = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    return {**variables, "LC_ALL": "C.UTF-8", **changes}


def run(*arguments, ranks=0, **changes):
    launcher = [MPIEXEC, "--oversubscribe", "-n", str(ranks)] if ranks else []
    return subprocess.run([*launcher, BINARY, *arguments], env=environment(**changes), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=120, check=False)


def widest(text):
    return max(map(len, text.splitlines()))


def on_terminal(columns, *arguments, **changes):
    """What the binary writes to a terminal of so many columns, without carriage returns."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen([BINARY, *arguments], env=environment(NO_COLOR="1", **changes), stdin=writer, stdout=writer,
                          stderr=writer) as process:
        os.close(writer)
        text = b""
        while True:
            try:
                part = os.read(reader, 65536)
            except OSError:  # the terminal is closed on its other side
                break
            text += part
        process.wait(60)
    os.close(reader)
    return text.decode().replace("\r", "")


class Width(unittest.TestCase):
    def test_what_goes_to_a_file_or_pipe_is_for_80_columns(self):
        for command in ("", *COMMANDS):
            with self.subTest(command):
                result = run(*([command] if command else []), "--help")
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertLessEqual(widest(result.stdout), 80)

    def test_columns_decides_where_it_is_set(self):
        for columns in (60, 80, 120):
            for arguments in (("update", "--help"), ("plan", "--help"), ("--help",), ("doctor", "--backend", "host"),
                              ("plan", *LONG, "--gpus", "16", "--gpu-memory", "80GB", "--list", "3")):
                with self.subTest(columns=columns, arguments=arguments):
                    result = run(*arguments, COLUMNS=str(columns))
                    self.assertEqual(result.stderr, "")
                    self.assertLessEqual(widest(result.stdout), columns)
        for wrong in ("", "0", "-5", "wide", "80x"):
            with self.subTest(wrong):
                self.assertEqual(run("plan", "--help", COLUMNS=wrong).stdout, run("plan", "--help").stdout)

    def test_a_report_fits(self):
        reports = {}
        for columns in (60, 80, 120):
            result = run("update", "--model", "preset:tiny-dense", "--trainer", "megatron:tp=2", "--backend", "host",
                         "--kv-cache", "1MiB", "--limits", "off", "--versions", "4", ranks=4, COLUMNS=str(columns))
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertLessEqual(widest(result.stdout), columns)
            reports[columns] = result.stdout
        self.assertRegex(reports[80], r"(?m)^offload +trainer +optimizer +[\d.]+ +[\d.]+ ")
        self.assertRegex(reports[120], r"(?m)^ +4  offload +trainer +optimizer ")
        for report in reports.values():
            self.assertRegex(report, r"(?m)^committed  version 4$")

    def test_a_terminal_decides_where_columns_is_not_set(self):
        for columns in (60, 80, 120):
            with self.subTest(columns):
                asked = ("plan", *LONG, "--gpus", "16")
                tables = [text[text.index("from \\ to"):] for text in (
                    on_terminal(columns, *asked), run(*asked, COLUMNS=str(columns)).stdout)]
                self.assertEqual(*tables)
        self.assertEqual(on_terminal(60, "plan", "--help", COLUMNS="100"), run("plan", "--help", COLUMNS="100").stdout)
        self.assertEqual(on_terminal(0, "plan", "--help"), run("plan", "--help").stdout)

    def test_examples_of_a_narrow_help_are_still_commands(self):
        def examples(columns):
            text = run("update", "--help", COLUMNS=str(columns)).stdout
            return re.sub(r" \\\n +", " ", text[text.index("Examples:"):])

        self.assertEqual(examples(60), examples(80))

    def test_examples_belong_to_their_command(self):
        for command in COMMANDS:
            text = run(command, "--help").stdout
            text = text[text.index("Examples:"):]
            examples = re.sub(r" \\\n +", " ", text).strip().splitlines()[1:]
            self.assertTrue(examples, command)
            self.assertTrue(any(f"awex-colocate {command}" in example for example in examples), command)


class Hints(unittest.TestCase):
    def refused(self, *arguments, says, hint):
        with self.subTest(arguments):
            result = run(*arguments)
            self.assertEqual((result.returncode, result.stdout), (2, ""), result.stderr)
            error, advice = result.stderr.splitlines()
            self.assertIn(says, error)
            self.assertIn(hint, advice)

    def test_one_command_a_call(self):
        for first, second in (("update", "plan"), ("plan", "update"), ("doctor", "doctor"), ("status", "stop")):
            self.refused(first, second, says=f'"{first}" and "{second}" are two commands', hint="one command a call")
            self.refused(first, "--", second, says="two commands", hint=f"awex-colocate {second}")
        self.refused("help", "update", "plan", says="two commands", hint="awex-colocate help plan")
        self.refused("update", "--model", "preset:tiny-dense", "plan", "--gpus", "2", says="two commands", hint="one")

    def test_the_name_of_a_command_may_be_a_value(self):
        self.assertEqual(run("help", "update").stdout, run("update", "--help").stdout)
        self.assertIn("there is no directory plan", run("update", "--model", "plan").stderr)
        with tempfile.TemporaryDirectory() as directory:
            made = os.path.join(directory, "update")
            self.assertEqual(run("checkpoint", "--preset", "tiny-dense", "--out", made).returncode, 0)
            here = subprocess.run([BINARY, "digest", "update"], cwd=directory, capture_output=True, text=True,
                                  timeout=60, check=False)
            self.assertRegex(here.stdout, r"(?m)^0x[0-9a-f]{16}  model$")

    def test_commands(self):
        for typed, meant in (("updat", "update"), ("Update", "update"), ("stat", "status"), ("run", "update"),
                             ("start", "serve"), ("kill", "stop"), ("check", "doctor"), ("version", "--version"),
                             ("up", "update"), ("pln", "plan")):
            self.refused(typed, says=f'unknown command "{typed}"', hint=f'{meant}"?')
        self.refused("frobnicate", says="unknown command", hint="awex-colocate --help lists the commands")

    def test_presets(self):
        for typed, says, hint in (
                ("preset:qwen3", 'no preset "qwen3"', "qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b,"),
                ("preset:Qwen3-8B", 'no preset "Qwen3-8B"', 'did you mean "qwen3-8b"?'),
                ("preset:qwen3_8b", "no preset", 'did you mean "qwen3-8b"?'),
                ("preset:qwen3-9b", "no preset", "one of qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b,"),
                ("preset:qwem3-8b", "no preset", 'did you mean "qwen3-8b"?'),
                ("preset:Qwen/Qwen3-8B", "no preset", 'did you mean "qwen3-8b"?'),
                ("preset:llama3", "no preset", "llama-3.1-8b"),
                ("preset:", 'no preset ""', "known: "),
                ("preset:nothing-like-it", "no preset", "known: "),
                ("qwen3-8b", "no directory qwen3-8b", "weights: preset:qwen3-8b"),
                ("Qwen/Qwen3-8B", "no directory Qwen/Qwen3-8B", "weights: preset:qwen3-8b"),
                ("qwen3", "no directory qwen3", "weights: preset:qwen3-0.6b, preset:qwen3-1.7b"),
                ("Preset:qwen3-8b", "no directory", "weights: preset:qwen3-8b"),
                ("preset=qwen3-8b", "no directory", "weights: preset:qwen3-8b"),
                ("/models/mine", "no directory /models/mine", "checkpoint directory or preset:NAME")):
            for command in ("update", "plan"):
                self.refused(command, "--model", typed, says=says, hint=hint)
        for given in (("--preset=qwen3-8b",), ("--preset", "qwen3-8b"), ("--preset", "preset:qwen3-8b")):
            self.refused("update", *given, says='unknown option "--preset"', hint="write --model preset:qwen3-8b")
        self.refused("checkpoint", "--model", "preset:tiny-moe", says='"--model"', hint="write --preset tiny-moe")
        self.refused("checkpoint", "--out", "o", "--preset", "preset:tiny-moe", says="no preset", hint='"tiny-moe"')

    def test_layouts(self):
        both = "--trainer megatron:tp=2 --inference sglang:tp=2"
        self.refused("update", "--tp", "2", says='unknown option "--tp"', hint=both)
        self.refused("plan", "--tensor-parallel-size=2", says="unknown option", hint=both)
        self.refused("update", "--cp", "2", says="unknown option", hint="--trainer megatron:cp=2")
        self.refused("update", "--shard", "8", says="unknown option", hint="--trainer fsdp:shard=8")
        self.refused("plan", "--dp", "2", says='unknown option "--dp"', hint="leave it out: data parallel")
        for option, spec, says, hint in (
                ("--trainer", ["megatron:TP=2"], 'no option "TP"', "tp="),
                ("--trainer", ["megatron:tensor-parallel-size=2"], "no option", "tp="),
                ("--trainer", ["megatron", "tp=2"], 'argument "tp=2"', "--trainer megatron:tp=2"),
                ("--trainer", ["megatron:tp=2", "pp=2"], 'argument "pp=2"', "--trainer megatron:tp=2,pp=2"),
                ("--inference", ["sglang", "tp=2"], 'argument "tp=2"', "--inference sglang:tp=2"),
                ("--trainer", ["megatron tp=2"], "no trainer engine", "write megatron:tp=2"),
                ("--trainer", ["megatron,tp=2,pp=2"], "no trainer engine", "write megatron:tp=2,pp=2"),
                ("--trainer", ["megatron:tp=2 pp=2"], "not a whole number", "tp=2,pp=2"),
                ("--trainer", ["megatron:tp=2:pp=2"], "not a whole number", "tp=2,pp=2"),
                ("--trainer", ["megatron:tp2"], "not key=value", "write tp=2"),
                ("--trainer", ["megatron:tp:2"], "not key=value", "write tp=2"),
                ("--trainer", ["Megatron:tp=2"], "no trainer engine", 'did you mean "megatron"?'),
                ("--trainer", ["mcore:tp=2"], "no trainer engine", 'did you mean "megatron"?'),
                ("--trainer", ["sglang:tp=2"], "no trainer engine", "--inference sglang:tp=2"),
                ("--inference", ["megatron:tp=2"], "no inference engine", "--trainer megatron:tp=2"),
                ("--inference", ["SGLang:tp=2"], "no inference engine", 'did you mean "sglang"?'),
                ("--inference", ["vllm:ep=4"], "vLLM's expert parallelism is on or off", "vllm:tp=4,ep=on"),
                ("--inference", ["sglang:ep=2"], "ep=2 is more than tp=1", "sglang:tp=2,ep=2"),
                ("--inference", ["sglang:tp=3,ep=2"], "tp = 3 does not divide by ep=2", "an ep that divides 3")):
            self.refused("update", "--model", "preset:tiny-dense", option, *spec, says=says, hint=hint)

    def test_options(self):
        for arguments, hint in (
                (("offload", "--versions", "3"), "it is an option of update"),
                (("update", "--gpus", "2"), "it is an option of plan"),
                (("status", "--model", "m"), "it is an option of update,"),
                (("update", "--Model", "m"), '"--model"'),
                (("update", "-model", "m"), '"--model"'),
                (("update", "--kv_cache", "1"), '"--kv-cache"'),
                (("plan", "--num-gpus", "2"), '"--gpus"'),
                (("update", "-np", "2"), "mpirun -np 2 awex-colocate update"),
                (("update", "--oversubscribe"), "before the program"),
                (("update", "--dry-run"), "awex-colocate plan"),
                (("--versions", "3", "update"), "awex-colocate update --versions"),
                (("--job", "x", "status"), "awex-colocate status --job"),
                (("update", "--frobnicate"), "awex-colocate update --help")):
            self.refused(*arguments, says="unknown option", hint=hint)

    def test_arguments_and_values(self):
        for arguments, hint in (
                (("status", "/scratch/job"), "write --job /scratch/job"),
                (("plan", "preset:tiny-dense"), "write --model preset:tiny-dense"),
                (("update", "qwen3-8b"), "write --model qwen3-8b"),
                (("checkpoint", "tiny-dense"), "write --preset tiny-dense"),
                (("update", "model=preset:tiny-dense"), "write --model=preset:tiny-dense")):
            self.refused(*arguments, says="unknown argument", hint=hint)
        for option, typed, meant in (("--backend", "gpu", "cuda"), ("--backend", "CUDA", "cuda"),
                                     ("--backend", "cpu", "host"), ("--optimizer", "Adam", "adamw"),
                                     ("--limits", "false", "off"), ("--verify", "Digest", "digest")):
            self.refused("update", option, typed, says=f'{option}: "{typed}" is none of', hint=f'"{meant}"')


if __name__ == "__main__":
    BINARY, MPIEXEC = os.path.abspath(sys.argv[1]), sys.argv[2]
    unittest.main(argv=sys.argv[:1], verbosity=2)
