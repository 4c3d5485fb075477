"""What calls raise: a class for each status of the library, which are the exit codes of `awex-colocate`."""

from __future__ import annotations

import re
from enum import IntEnum

__all__ = [
    "AwexError",
    "DeadlinePassed",
    "EngineLost",
    "Failed",
    "Mismatch",
    "Status",
    "WrongRequest",
]


class Status(IntEnum):
    """Statuses of the library, and exit codes of `awex-colocate`."""

    OK = 0
    FAILED = 1
    WRONG_REQUEST = 2
    MISMATCH = 3
    DEADLINE = 4
    LOST = 5


class AwexError(RuntimeError):
    """A call that failed. `message` says what and why, `hint` what to do (may be empty)."""

    status: Status = Status.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n  hint: {hint}" if hint else message)
        self.message = message
        self.hint = hint


class Failed(AwexError):
    """Something failed at run time."""


class WrongRequest(AwexError):
    """Options, layout or tensors do not fit. Nothing was changed."""

    status = Status.WRONG_REQUEST


class Mismatch(AwexError):
    """Bytes differ from the trainer's. Nothing was committed."""

    status = Status.MISMATCH


class DeadlinePassed(AwexError):
    """A wait took too long. What was asked for has been taken back."""

    status = Status.DEADLINE


class EngineLost(AwexError):
    """The rank, or the whole job, is gone. What is mapped here stays mapped."""

    status = Status.LOST


_CLASSES: dict[int, type[AwexError]] = {
    kind.status: kind for kind in (Failed, WrongRequest, Mismatch, DeadlinePassed, EngineLost)
}


#: Calls of the library that its errors name,
_CALL = re.compile(
    r"\bawex_(attach|book|consistent|declare_own|declare|hand_over|keep|map_placeholder|ready|release|restore|seal"
    r"|take_back_weights|take_back|wait|writing)\b"
)
#: and those of them that are called otherwise here.
_NAMES = {
    "consistent": "the end of writing()",
    "declare": "register()",
    "declare_own": "register()",
    "take_back_weights": "take_back(optimizer=False)",
}


def error_of(status: int, text: str) -> AwexError:
    """The exception for a status and the text of awex_error, which names calls as they are called in C."""
    text = _CALL.sub(lambda call: _NAMES.get(call[1], f"{call[1]}()"), text)
    first, _, rest = text.partition("\n")
    hint = " ".join(rest.split()).removeprefix("hint: ")
    kind = _CLASSES.get(status, Failed)
    return kind(first or f"the library returned {status} without a word", hint)
