"""Errors shown to the user: one line, a hint and an exit code each."""


class QuantkitError(Exception):
    """A failure with a sentence for the user.

    The sentence says what was found, where, and what was expected; `hint` says what to do about
    it. The command line prints both and leaves with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(QuantkitError):
    """Options that contradict one another, or that no runtime could load."""

    exit_code = 2


class BadInputError(QuantkitError):
    """A file, configuration or text that is not what it must be."""

    exit_code = 3


class NotFoundError(QuantkitError):
    """A repository, revision or file that is missing, gated, or not open to this user."""

    exit_code = 4


class NetworkError(QuantkitError):
    """The network failed after every retry."""

    exit_code = 5


class DiskError(QuantkitError):
    """A disk that is full, read-only or too small for the plan."""

    exit_code = 6


class OutOfMemoryError(QuantkitError):
    """Less memory than the plan needs."""

    exit_code = 7


class QualityError(QuantkitError):
    """An artifact that missed the quality its recipe demands."""

    exit_code = 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that host or GPU have no memory left, in the words of whoever raised it."""
    said = ("out of memory", "allocate memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )
