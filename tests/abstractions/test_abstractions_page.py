"""What docs/abstractions.md shows runs, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "abstractions.md"


def test_the_pages_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text()
    names: dict[str, Any] = {}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block.group(1), str(PAGE), "exec"), names)
        printed = capsys.readouterr().out.splitlines()
        # Where a comment says what is printed, it is.
        for number, shown in enumerate(re.findall(r"^print\(.*\)  # (\d[\d.]*)", block.group(1), re.MULTILINE)):
            assert f"{float(printed[number]):.{len(shown.partition('.')[2])}f}" == shown
    assert names["bound"].switch_kl > 0.0
