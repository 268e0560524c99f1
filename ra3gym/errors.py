"""Every error the toolkit raises on purpose. Each message names the wrong value and the way out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class Ra3GymError(Exception):
    """Base of all errors raised on purpose; the command line prints it in one line, without a traceback."""


class UnknownNameError(Ra3GymError, ValueError):
    """A name (arm, task set, model, study, ...) that is not in its registry."""

    def __init__(self, kind: str, name: object, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        close = get_close_matches(str(name), known, n=1)
        message = f"unknown {kind} {str(name)!r}; known: {', '.join(known)}"
        if close:
            message += f". Did you mean {close[0]!r}?"
        if hint:
            message += f" {hint}" if close else f". {hint}"
        super().__init__(message)


class DataError(Ra3GymError, ValueError):
    """Task data that cannot be used; the message names the file, the line and the field."""


class ConfigError(Ra3GymError, ValueError):
    """A configuration value outside its range, or two that contradict each other."""


class MissingExtraError(Ra3GymError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs {package!r}; install it with: pip install 'ra3gym[{extra}]'")


@contextmanager
def importing_extra(extra: str, packages: Collection[str], needed_for: str) -> Iterator[None]:
    """Raise `MissingExtraError` when an import inside the block fails because one of `packages` is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in packages:
            raise
        raise MissingExtraError(package, extra, needed_for) from error


class ModelError(Ra3GymError, ValueError):
    """A model or checkpoint that cannot be loaded, or lacks what was asked of it (latent tokens, say)."""


class RunFolderError(Ra3GymError, ValueError):
    """A folder that is not a run, or a run that cannot be continued as asked."""


class OutputError(Ra3GymError, OSError):
    """A file or folder that cannot be written: the disk is full, or the place is read-only."""


class TrainingDiverged(Ra3GymError, RuntimeError):
    """Training that cannot continue: weights or gradients are not finite, or the policy has collapsed."""


class WorkerDied(Ra3GymError, RuntimeError):
    """A process of a study ended without a word; what was finished is stored."""


class SandboxUnavailable(Ra3GymError, RuntimeError):
    """This machine cannot isolate untrusted programs as asked."""


class JudgeError(Ra3GymError, RuntimeError):
    """The judge itself is broken or closed: never a verdict on a program."""


class SamplerError(Ra3GymError, RuntimeError):
    """The server that samples for a trainer failed, or does not sample from the trainer's policy."""
