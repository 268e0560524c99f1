"""The statement of a problem as the beginning of a Python program."""

from __future__ import annotations


def docstring(*parts: str, separator: str = "\n") -> str:
    """Join the non-empty parts, stripped, into a docstring that is valid Python for any text."""
    stripped = [part.replace("\r\n", "\n").replace("\0", "").strip() for part in parts]
    text = separator.join(part for part in stripped if part).replace('"""', "'''")
    prefix = "r" if "\\" in text else ""
    return f'{prefix}"""\n{text}\n"""\n'
