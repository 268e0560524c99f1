"""A miniature study through the command line: what it leaves behind, that it repeats, and that it survives a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

ARMS = ("ntp", "pseudo", "ra3", "oracle", "ra3-as-pseudo")
RLVR_ARMS = ("pseudo", "ra3")
SEEDS = (0, 1)
OPTIONS = {
    "seeds": ",".join(map(str, SEEDS)),
    "arms": ",".join(ARMS),
    "rlvr-arms": ",".join(RLVR_ARMS),
    "workers": 2,
    "domain.length": 2,
    "domain.num-compositions": 40,
    "domain.num-held-out": 8,
    "domain.num-traces": 60,
    "domain.num-base-traces": 30,
    "model.hidden": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.vocab-size": 320,
    "codebook.num-latents": 8,
    "codebook.restarts": 1,
    "codebook.iterations": 3,
    "base.tokens": 2000,
    "m-step.tokens": 4000,
    "rlvr.steps": 2,
    "rlvr.tasks-per-step": 2,
    "rlvr.group-size": 2,
    "rlvr.max-new-tokens": 24,
    "evaluation.samples": 2,
    "evaluation.curve-points": 2,
    "evaluation.curve-samples": 1,
    "evaluation.threshold-window": 1,
    "evaluation.shown-tasks": 2,
}
START = ("run", "quickstart", *(text for name, value in OPTIONS.items() for text in (f"--{name}", str(value))))
MEASURED_TIMES = {"seconds", "e_step_seconds", "tokens_per_second"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ra3gym", *map(str, arguments)]


def ra3gym(*arguments: object, folder: Path) -> str:
    """Run the command to its end in `folder`; what it printed comes back."""
    done = subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def without_times(content: Any) -> Any:
    """JSON without what a clock measured: such values, and comparisons of such scores."""
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if name not in MEASURED_TIMES}
    if isinstance(content, list):
        timed = [isinstance(one, dict) and one.get("score") in MEASURED_TIMES for one in content]
        return [without_times(one) for one, skipped in zip(content, timed, strict=True) if not skipped]
    return content


def results(run: Path) -> dict[str, Any]:
    """Every unit's result by file."""
    files = sorted((run / "results").glob("seed-*/*.json"))
    return {str(file.relative_to(run)): without_times(json.loads(file.read_text())) for file in files}


def metrics(run: Path) -> list[Any]:
    return [without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study that ran to its end: its run folder, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    printed = ra3gym(*START, folder=folder)
    return only_run(folder), printed


def test_a_run_folder_holds_everything(finished: tuple[Path, str]) -> None:
    run, printed = finished
    for name in ("config.json", "manifest.json", "metrics.jsonl", "summary.json", "report.html"):
        assert (run / name).stat().st_size > 0
    assert set(results(run)) == {f"results/seed-{seed}/{arm}.json" for seed in SEEDS for arm in ARMS}
    for result in results(run).values():
        assert 0 <= result["scores"]["pass@1"] <= 1
        assert (result["scores"]["tokens"] >= OPTIONS["m-step.tokens"]) == (result["arm"] != "ra3-as-pseudo")
        assert ("pass@1_after" in result["scores"]) == (result["arm"] in RLVR_ARMS)
        assert len(result["samples"]) == OPTIONS["evaluation.shown-tasks"]
    stages = {(one["seed"], one["arm"], one["stage"]) for one in metrics(run)}
    assert {(seed, arm, "mid-train") for seed in SEEDS for arm in ARMS} <= stages
    assert {(seed, arm, "rlvr") for seed in SEEDS for arm in RLVR_ARMS} <= stages
    assert json.loads((run / "manifest.json").read_text())["seeds"] == list(SEEDS)
    assert f"Run folder: runs/{run.name}" in printed
    assert f"Report: runs/{run.name}/report.html" in printed
    for arm in ARMS:
        assert f"\n {arm} " in printed


def test_checkpoints_are_plain_hugging_face_folders(finished: tuple[Path, str]) -> None:
    run, _ = finished
    names = {"base", *(f"{arm}-midtrained" for arm in ARMS), *(f"{arm}-rlvr" for arm in RLVR_ARMS)}
    for seed in SEEDS:
        folders = list((run / "checkpoints" / f"seed-{seed}").iterdir())
        assert {folder.name for folder in folders} == names
        for folder in folders:
            model = AutoModelForCausalLM.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            ids = tokenizer("def f(x):\n    return x\n", return_tensors="pt")["input_ids"]
            assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))


def test_a_killed_study_resumes_to_the_same_numbers(finished: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = finished
    # A session of its own, so that one signal reaches the workers too.
    process = subprocess.Popen(
        command(*START), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not any(tmp_path.glob("runs/*/results/*/*.json")):
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail("the study ended before its first result")
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    run = only_run(tmp_path)
    kept = {file: file.stat().st_mtime_ns for file in run.glob("results/*/*.json")}
    assert 0 < len(kept) < len(SEEDS) * len(ARMS)
    assert not (run / "summary.json").exists()

    ra3gym("run", "quickstart", "--resume", run, folder=tmp_path)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert results(run) == results(whole)
    assert metrics(run) == metrics(whole)
    assert without_times(json.loads((run / "summary.json").read_text())) == without_times(
        json.loads((whole / "summary.json").read_text())
    )
    assert len(json.loads((run / "manifest.json").read_text())["resumed"]) == 1
    assert [path.name for path in run.rglob(".*") if path.name != ".lock"] == []


def test_arms_are_part_of_the_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    manifest = json.loads((run / "manifest.json").read_text())
    arm = manifest["pinned"]["arms"]["ra3"]
    assert arm["recipe"] == {"latents": "inferred", "prompts": "inferred", "budget": 1.0}
    assert arm["rlvr_learning_rates"] == [1e-3]
    assert manifest["pinned"]["arms"]["ntp"]["rlvr_learning_rates"] == []
    arm["rlvr_learning_rates"] = [1e-4]  # as if the table of arms had changed since
    (run / "manifest.json").write_text(json.dumps(manifest))
    resumed = subprocess.run(
        command("run", "quickstart", "--resume", run), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert resumed.returncode != 0
    assert "another arms (see its manifest.json)" in resumed.stderr


def test_report_redraws(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, printed = finished
    page = run / "report.html"
    before = page.read_text()
    page.unlink()
    again = ra3gym("report", run, folder=tmp_path)
    assert page.read_text() == before
    table = printed[printed.index("Arms, 2 seeds") : printed.index("Report: ")]
    assert table in again


def test_a_finished_run_is_resumed_at_once_and_stays_as_it_is(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    before = results(run)
    ra3gym("run", "quickstart", "--resume", run, folder=tmp_path)
    assert results(run) == before


def children(process: int) -> list[tuple[int, str]]:
    """`(process, command line)` of each child that is still there."""
    found = []
    for child in Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it is gone already
            found.append((int(child), Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8")))
    return found


def test_a_killed_worker_is_told_with_the_way_out(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(*START), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    workers: list[int] = []
    while not workers:
        assert process.poll() is None
        workers = [child for child, line in children(process.pid) if "spawn_main" in line]
    os.kill(workers[0], signal.SIGKILL)
    told = process.stderr.read()
    assert process.wait() == 1
    assert "a worker process was killed" in told
    assert f"ra3gym run quickstart --resume runs/{only_run(tmp_path).name}" in told
    assert "Traceback" not in told
