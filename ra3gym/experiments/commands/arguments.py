"""From the command line to a configuration: tyro with our errors, and with lists that may be written with commas."""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, TypeVar, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ra3gym.errors import Ra3GymError

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], **options: Any) -> T:
    """Return an instance of `kind` made from the command line.

    `SystemExit` after --help, or after tyro has named a wrong flag. tyro prints a `ValueError` of a dataclass in a box
    of its own. So the first attempt is silent; our own errors are raised, all else is shown by a second attempt.
    """

    def parsed() -> T:
        instance: T = tyro.cli(kind, args=arguments, registry=_comma_separated(), **options)
        return instance

    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return parsed()
    except SystemExit as ended:
        for error in _context(ended):
            if isinstance(error, Ra3GymError):
                raise error from None
    return parsed()


def _context(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions during whose handling `error` was raised, latest first."""
    while error.__context__ is not None:
        error = error.__context__
        yield error


def _comma_separated() -> ConstructorRegistry:
    """Return a tyro registry that reads lists with commas, spaces or both: `--k 1,10`, `--arms ntp ra3`."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def separated(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[object, ...]] | None:
        item, *rest = get_args(info.type) or (None,)
        if info.type_origin is not tuple or rest != [...] or item not in (int, str):
            return None
        metavar = "INT" if item is int else "NAME"
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=f"{metavar}[,{metavar} ...]",
            instance_from_str=lambda words: tuple(item(part) for word in words for part in word.split(",") if part),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(entry, item) for entry in value),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    return registry
