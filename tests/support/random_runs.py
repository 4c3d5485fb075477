"""Random runs of a script, by seed and number: what such scripts share."""

import shutil
import tempfile

from sessions import signals_as_exceptions


def add_options(parser, runs, ranks):
    """With the usual number of runs and of ranks."""
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=ranks)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--only", type=int, help="the number of the one run to do")


def carry_out(make, arguments, prefix):
    """Does all runs of `make(arguments, scratch)`, ends what they leave, and prints the figures, also when a signal ends
    it. Returns the exit code."""
    scratch = tempfile.mkdtemp(prefix=prefix)
    with signals_as_exceptions():
        try:
            runs = make(arguments, scratch)
            try:
                runs.all()
            finally:
                runs.end()
                print(runs.figures(), flush=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return 1 if runs.failures else 0
