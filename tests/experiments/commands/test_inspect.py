"""Annotated traces in the terminal and on the page: what is shown, what is chosen, and what a trace cannot do."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.dataset import AnnotatedTraces, save_annotated
from ra3gym.abstractions.latents.document import DocumentWriter
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.cli import main
from ra3gym.errors import ConfigError, DataError, RunFolderError
from ra3gym.experiments.commands.inspect import InspectionConfig, inspect_traces, printable, trace_files
from ra3gym.lm import add_latents, train_tokenizer
from ra3gym.runs.folder import RunFolder
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests
from ra3gym.tasks.idioms import IdiomsDomain

MakeRun = Callable[..., RunFolder]
VOID = {"meta", "input"}


class Page(HTMLParser):
    """Collects text and attributes, and fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def make_trace(prompt: str, *steps: str, name: str = "mine/0") -> ExpertTrace:
    return ExpertTrace(CodeTask(name, prompt, "f", FunctionTests((), ())), steps)


def store(file: Path, traces: Sequence[ExpertTrace], inferred: Annotations) -> Path:
    writer = document_writer()
    documents = (writer.write(trace, inferred, index) for index, trace in enumerate(traces))
    save_annotated(AnnotatedTraces(tuple(documents), inferred.names), file)
    return file


@cache
def document_writer() -> DocumentWriter:
    tokenizer = train_tokenizer(["n += 1\n"], vocab_size=300)
    add_latents(None, tokenizer, 32)
    return DocumentWriter(tokenizer)


def show(source: Path, **options: Any) -> tuple[Page, str]:
    """The page, and what the terminal shows."""
    console = Console(file=io.StringIO(), width=110)
    path = inspect_traces(InspectionConfig(source, **options), console)
    assert isinstance(console.file, io.StringIO)
    return Page(path.read_text(encoding="utf-8")), console.file.getvalue()


TRACES = [
    make_trace("# up twice\ndef f(n):\n", "    n += 1\n", "    n += 1\n", "    return n\n", name="mine/up"),
    make_trace("def f(n):\n", "    return n\n", name="mine/none"),
    make_trace("# down\ndef f(n):\n", "    n -= 1\n", "    return n\n", name="mine/down"),
]
INFERRED = Annotations(
    paths=(
        LatentPath((2, 2, 0), (True, False, True)),
        LatentPath((0,), (True,)),
        LatentPath((1, 0), (True, True)),
    ),
    names=((), ("down", "less"), ("up", "twice"), ("never",)),
    gains=((0.25, -1.5, 0.0), (0.1,), (2.0, 0.1)),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return store(tmp_path / "traces.jsonl", TRACES, INFERRED)


def test_the_page_shows_traces_and_a_legend(file: Path) -> None:
    page, _ = show(file)
    assert [attrs["data-z"] for attrs in page.with_class("trace")] == ["0 2", "0", "0 1"]
    assert [attrs["data-z"] for attrs in page.with_class("segment")] == ["2", "0", "0", "1", "0"]
    assert [attrs["data-gain"] for attrs in page.with_class("row")] == [
        "+0.25",
        "-1.50",
        "+0.00",
        "+0.10",
        "+2.00",
        "+0.10",
    ]
    assert [attrs["data-n"] for attrs in page.with_class("row")] == ["1", "2", "3", "1", "1", "2"]
    assert len(page.with_class("loss")) == 1
    assert [attrs["data-z"] for attrs in page.with_class("entry")] == ["0", "2", "1"]
    for shown in ("3 traces under 3 latents", "of 4", "down less", "50.0%", "Never used: 3", "# up twice", "n -= 1"):
        assert shown in page.text
    colors = {attrs["data-z"]: attrs["style"] for attrs in page.with_class("entry")}
    assert len(set(colors.values())) == 3
    assert all(attrs["style"] == colors[attrs["data-z"]] for attrs in page.with_class("segment"))


def test_the_terminal_shows_them_too(file: Path) -> None:
    _, printed = show(file)
    lines = [line.rstrip() for line in printed.splitlines()]
    at = lines.index("mine/up")
    stroke = lines[at + 3].split()[1]
    assert lines[at + 1 : at + 6] == [
        "       # up twice",
        "       def f(n):",
        f"  z2 {stroke}     n += 1",
        f"     {stroke}     n += 1",
        lines[at + 5],
    ]
    assert lines[at + 5].startswith("  z0 ")
    (legend,) = (line for line in lines if "down less" in line)
    assert [word for word in legend.split() if word not in "┃╏┋║"] == [
        "z1",
        "down",
        "less",
        "16.7%",
        "1.0",
        "+2.00",
        "n",
        "-=",
        "1",
    ]
    assert f"Page, with 3 of 3 traces: {file.with_suffix('.html')}" in lines


@pytest.mark.parametrize("width", [60, 80, 110])
def test_code_keeps_its_line_and_digits_are_never_cut(tmp_path: Path, width: int) -> None:
    line = "    result.append(previous[-1] + sum(values))\n"
    words = ("accumulate", "running", "cumulative", "total", "prefix")
    paths = (LatentPath((0,), (True,)),)
    file = store(tmp_path / "t.jsonl", [make_trace("", line)], Annotations(paths, (words,), gains=((0.25,),)))
    console = Console(file=io.StringIO(), width=width)
    inspect_traces(InspectionConfig(file), console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    table = printed[printed.index("latent ") :]
    assert "…" not in table
    if width >= 80:
        assert line.strip() in table
    assert ("+0.25" in table) == (width > 80)
    assert ("100.0%" in table) == (width > 80)
    for word in words:
        assert word in table


def test_latents_have_colors_in_a_terminal(file: Path) -> None:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system="truecolor")
    inspect_traces(InspectionConfig(file), console)
    assert isinstance(console.file, io.StringIO)
    assert (
        "\x1b[1;38;2;255;255;255;48;2;0;114;178m  z0 \x1b[0m\x1b[38;2;0;114;178m┃ \x1b[0m    return n\n"
        in console.file.getvalue()
    )


def test_the_page_loads_nothing(file: Path) -> None:
    show(file)
    html = file.with_suffix(".html").read_text()
    assert all(not attrs.keys() & {"src", "href", "srcset", "action"} for _, attrs in Page(html).tags)
    assert not any(
        word in html for word in ("http:", "https:", "url(", "@import", "fetch(", "XMLHttpRequest", "innerHTML")
    )


def test_a_trace_is_quoted_not_run(tmp_path: Path) -> None:
    evil = "\"'></script></pre><script>alert(1)</script><img src=x onerror='alert(2)'>{{ 7 * 7 }}{% raw %}"
    trace = make_trace(f"# {evil}\n", f"x = {evil!r}\n", "\x1b]0;title\x07\x1b[2J[red]x[/red]\x9b\u202e\n", name=evil)
    names = ((evil,), ("[link=file:///]x",))
    file = store(tmp_path / "t.jsonl", [trace], Annotations((LatentPath((0, 1), (True, True)),), names))
    page, printed = show(file, task=evil)
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == ["script"]
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert page.text.count(evil) == 3
    assert page.with_class("segment")[0]["data-words"] == evil
    assert "␛]0;title␇␛[2J[red]x[/red]" in printed
    assert "[link=file:///]x" in printed
    assert not any(mark in printed for mark in "\x1b\x07\x9b\u202e")


def test_printable_keeps_code_as_it_is() -> None:
    assert printable("\tif x: return 'é ≤ 日本'") == "    if x: return 'é ≤ 日本'"
    assert printable("a\rb\0\x7f") == "a␍b␀�"


def test_choosing_by_latent_and_task(file: Path) -> None:
    page, printed = show(file, latent=1)
    assert [attrs["data-z"] for attrs in page.with_class("trace")] == ["0 1"]
    pressed = {attrs["data-z"]: attrs["aria-pressed"] for attrs in page.with_class("entry")}
    assert pressed == {"0": "false", "2": "false", "1": "true"}
    assert "3 traces under 3 latents" in page.text
    assert "1 other latent is on the page" in printed
    page, printed = show(file, task="mine/none")
    assert [attrs["data-z"] for attrs in page.with_class("trace")] == ["0"]
    assert "mine/up" not in printed
    page, _ = show(file, limit=2)
    assert len(page.with_class("trace")) == 2
    assert "2 of 3 traces" in page.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 3}, "no line of .* is under latent 3; these latents are used: 0 to 2"),
        ({"latent": -1}, "under latent -1"),
        ({"task": "mine/upp"}, "of task 'mine/upp'; it has traces of mine/up"),
        ({"task": "zzz"}, "it has traces of mine/up, mine/none, mine/down"),
        ({"task": "mine/none", "latent": 2}, "task 'mine/none' is under latent 2; these latents are used: 0"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_what_no_trace_has(file: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        show(file, **options)
    assert not file.with_suffix(".html").exists()


def test_one_line_and_no_gains(tmp_path: Path) -> None:
    file = store(tmp_path / "t.parquet", [make_trace("", "pass")], Annotations((LatentPath((1,), (True,)),), ((), ())))
    page, printed = show(file, output=tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").is_file()
    assert "1 trace under 1 latent" in page.text
    assert "no trace has a second line" in page.text
    assert "Gain per line" not in page.text
    assert page.with_class("prompt") == []
    assert page.with_class("gain") == []
    assert "z1" in printed


def test_an_empty_line_keeps_its_place(tmp_path: Path) -> None:
    trace = make_trace("", "x = 1\n", "\n", "y = 2\n")
    file = store(tmp_path / "t.jsonl", [trace], Annotations((LatentPath((0, 0, 0), (True, False, False)),), ((),)))
    page, _ = show(file)
    assert len(page.with_class("row")) == 3
    assert "The latents have collapsed" in page.text


def test_a_run_with_several_seeds(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(RunFolderError, match=r"has no annotated traces .*`ra3gym run STUDY` writes them"):
        show(run.path)
    domain = IdiomsDomain(length=3, difficulty="easy", documented=0.5, num_compositions=20, num_held_out=1)
    traces = domain.traces(40)
    planted = OracleEStep().infer(traces, np.random.default_rng(0))
    for seed in (10, 9):
        store(run.path / "traces" / f"seed-{seed}.jsonl", traces, planted)
    assert [file.name for file in trace_files(run.path)] == ["seed-9.jsonl", "seed-10.jsonl"]
    page, printed = show(run.path)
    assert f"{run.path.name} · seed-9" in page.text
    assert len(page.with_class("trace")) == 40
    assert f"Other seeds have their own files; name one to see it: {run.path}/traces/seed-10.jsonl" in printed
    assert "The latents" not in page.text  # nothing is wrong with them
    with pytest.raises(RunFolderError, match=f"holds several runs: give one of {run.path}$"):
        show(run.path.parent)


def test_what_is_no_run(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunFolderError, match="neither a run nor a file of annotated traces"):
            show(source)
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(DataError, match="unknown kind of file"):
        show(tmp_path / "notes.txt")


def test_the_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "traces", str(file), "--latent", "1", "--limit", "5"]) == 0
    assert "mine/down" in capsys.readouterr().out
    assert main(["inspect", "traces", str(file), "--latent", "7"]) == 1
    assert "error: no line of" in capsys.readouterr().err
    assert main(["inspect", "trace", str(file)]) == 1
    assert "Did you mean 'traces'?" in capsys.readouterr().err
    assert main(["inspect"]) == 0
    assert "ra3gym inspect traces RUN" in capsys.readouterr().out


def test_rows_without_latents(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    save_annotated(AnnotatedTraces((document_writer().write(TRACES[0]),)), file)
    with pytest.raises(ConfigError, match="was written without latents"):
        show(file)
