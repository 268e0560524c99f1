"""Files and folders that appear whole or not at all, whenever the process that writes them is killed."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ra3gym.errors import OutputError
from ra3gym.files import (
    check_writable,
    completing_text,
    remove_unfinished,
    replacing_folder,
    replacing_text,
    write_atomic,
    write_json,
)


def test_writing_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_atomic(target, "old")
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    with pytest.raises(TypeError):
        write_json(target, {"x": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["results.jsonl", "results.jsonl.gz"])
def test_a_text_file_is_whole_or_not_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    def interrupted() -> None:
        with replacing_text(path) as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    path.write_text("before")
    with replacing_text(path) as file:
        file.write("after")
        assert path.read_text() == "before"
    content = path.read_bytes()
    assert (gzip.decompress(content) if name.endswith(".gz") else content) == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_what_an_interrupted_file_has_stays_as_its_part(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"

    def interrupted() -> None:
        with completing_text(path) as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("samples.jsonl.part", "half")]
    with pytest.raises(FileExistsError), completing_text(path):
        pass
    (tmp_path / "samples.jsonl.part").unlink()
    with completing_text(path) as file:
        file.write("whole")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("samples.jsonl", "whole")]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "model"
    for content in ("old", "new"):
        with replacing_folder(target) as fresh:
            assert list(fresh.iterdir()) == []
            (fresh / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["new"]

    def fails() -> None:
        with replacing_folder(target) as fresh:
            (fresh / "half").write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  # raised above
        fails()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


KILLED_AT_EVERY_LINE = """
import os, signal, sys
from pathlib import Path
from ra3gym import files

root, swaps = Path(sys.argv[1]), sys.argv[2] == "swaps"
if not swaps:
    files._RENAME_EXCHANGE = 1 << 30  # a flag that the kernel refuses, as some file systems refuse the real one
target = root / "model"
lines = 0

def kill_at(number):
    def trace(frame, event, argument):
        global lines
        if frame.f_code.co_filename == files.__file__ and event == "line":
            lines += 1
            if lines == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)

outcomes = []
while True:
    target.mkdir(exist_ok=True)
    for file in target.iterdir():
        file.unlink()
    (target / "old").write_text("old")
    child = os.fork()
    if child == 0:
        kill_at(len(outcomes) + 1)
        with files.replacing_folder(target) as fresh:
            (fresh / "new").write_text("new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    there = target.exists()
    files.remove_unfinished(root)
    assert [path.name for path in root.iterdir()] == ["model"], list(root.iterdir())
    (content,) = (path.read_text() for path in target.iterdir())
    outcomes.append((there, content))
    if not os.WIFSIGNALED(status):
        break
print(*(f"{there}-{content}" for there, content in outcomes))
"""


@pytest.mark.parametrize("system", ["swaps", "cannot swap"])
def test_a_folder_survives_a_kill_at_every_line(tmp_path: Path, system: str) -> None:
    """The child is killed at its first line in files.py, its second, and so on, until it lives to the end."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, tmp_path, system], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split()
    assert len(outcomes) > 20
    contents = [outcome.partition("-")[2] for outcome in outcomes]
    assert contents == sorted(contents, reverse=True), "old up to some line, new from there on"
    assert set(contents) == {"old", "new"}
    if system == "swaps":
        assert all(outcome.startswith("True") for outcome in outcomes), "the folder is there at every moment"
    else:
        assert "False-old" in outcomes, "killed between the two renames, the old folder comes back"


def test_a_new_folder_clears_up_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / ".model.replaced").mkdir()
    (tmp_path / ".model.replaced" / "old").write_text("old")
    with pytest.raises(ValueError), replacing_folder(tmp_path / "model"):  # noqa: PT011  # raised here
        raise ValueError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    remove_unfinished(tmp_path)
    assert (tmp_path / "model" / "old").read_text() == "old"


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for write in (check_writable, lambda path: write_atomic(path, "text")):
        with pytest.raises(OutputError, match=r"^cannot write .*/file/results: Not a directory; make room"):
            write(tmp_path / "file" / "results")


def test_a_relative_place_that_cannot_be_written_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"^cannot write file: Not a directory; make room"):
        check_writable(Path("file"))


def test_an_error_about_another_file_is_not_an_error_of_the_output(tmp_path: Path) -> None:
    def reading_elsewhere() -> None:
        with replacing_text(tmp_path / "results"):
            (Path(__file__) / "none").read_text(encoding="utf-8")

    with pytest.raises(NotADirectoryError):
        reading_elsewhere()


def test_a_full_disk_is_named_whatever_error_the_writer_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def saving() -> None:
        with replacing_folder(tmp_path / "checkpoint"):
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch.save does

    with pytest.raises(RuntimeError, match="unexpected pos"):
        saving()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(OutputError, match=r"cannot write .*/checkpoint: No space left on device"):
        saving()
    assert list(tmp_path.iterdir()) == []


WRITE = r"""
import resource
from pathlib import Path
from ra3gym.errors import OutputError
from ra3gym.files import replacing_text
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # what a quota or a full disk does, for any user
for salvage in (False, True):
    try:
        with replacing_text(Path("results.jsonl"), salvage=salvage) as file:
            for number in range(100_000):
                file.write(f"{number}\n")
    except OutputError as error:
        print(error)
"""


def test_what_was_written_before_the_disk_was_full_can_be_salvaged(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITE], cwd=tmp_path, capture_output=True, text=True, check=True)
    lost, salvaged = done.stdout.splitlines()
    assert lost == "cannot write results.jsonl: File too large; make room there, or choose another place"
    assert salvaged == f"{lost}. What was written until then is in results.jsonl.part"
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl.part"]
    numbers = (tmp_path / "results.jsonl.part").read_text().splitlines()
    assert numbers[:-1] == list(map(str, range(len(numbers) - 1)))
    assert len(numbers) > 10_000
