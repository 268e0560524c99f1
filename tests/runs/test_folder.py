"""Run folders: what they hold, what they refuse, and that nothing written is ever half there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ra3gym.errors import ConfigError, RunFolderError
from ra3gym.runs.folder import RunFolder
from ra3gym.runs.manifest import git_revision
from ra3gym.runs.metrics import MetricsLogger, merge_metrics, quote_name


@dataclass
class Config:
    seeds: tuple[int, ...] = (10, 11)
    data: Path = Path("data/traces")
    switch_cost: float = 0.05
    nested: dict[str, list[int]] = field(default_factory=lambda: {"k": [1, 8]})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "quickstart", Config())


def records(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_opens_as_it_was_created(run: RunFolder) -> None:
    opened = RunFolder.open(run.path, expect_kind="quickstart")
    assert (
        opened.config
        == run.config
        == {
            "seeds": [10, 11],
            "data": "data/traces",
            "switch_cost": 0.05,
            "nested": {"k": [1, 8]},
        }
    )
    assert opened.manifest == run.manifest
    assert opened.kind == "quickstart"
    assert opened.summary is None


def test_the_manifest_says_what_made_the_run(run: RunFolder) -> None:
    manifest = run.manifest
    assert manifest["seeds"] == [10, 11]
    assert manifest["resumed"] == []
    assert {"python", "torch", "gymnasium", "ra3gym", "tianshou"} <= manifest["versions"].keys()
    assert {"platform", "cpu", "cores", "memory_gib", "gpus", "torch_threads"} <= manifest["machine"].keys()
    assert manifest["started"].endswith("+00:00")


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    paths = {RunFolder.create(tmp_path, "baseline", Config()).path for _ in range(3)}
    assert len(paths) == 3
    assert all(path.name.startswith("baseline-") for path in paths)


def test_resuming_is_recorded(run: RunFolder) -> None:
    run.record_resume()
    resumed = RunFolder.open(run.path).manifest["resumed"]
    assert len(resumed) == 1
    assert resumed[0].keys() >= {"started", "command", "versions", "git", "machine"}


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run: it has no config\.json"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunFolderError, match="nowhere"):
        RunFolder.open(tmp_path / "nowhere")


def test_a_run_of_another_study_is_refused_with_the_way_out(run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="a run of 'quickstart', not of 'baseline': name that one"):
        RunFolder.open(run.path, expect_kind="baseline")


def test_a_damaged_run_is_refused(run: RunFolder) -> None:
    (run.path / "manifest.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"manifest\.json is damaged"):
        RunFolder.open(run.path)
    (run.path / "manifest.json").write_text("[]")
    with pytest.raises(RunFolderError, match="no JSON object"):
        RunFolder.open(run.path)


def test_runs_of_earlier_versions_open(run: RunFolder) -> None:
    manifest = dict(run.manifest)
    manifest["study"] = manifest.pop("kind")
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    assert RunFolder.open(run.path, "quickstart").kind == "quickstart"


def test_a_run_in_a_folder_of_the_users_choice(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("the user's")
    run = RunFolder.create_at(tmp_path, "rlvr", {"seed": 3, "tasks": ("a", "b")})
    assert run.path == tmp_path
    assert run.config == {"seed": 3, "tasks": ["a", "b"]}
    assert run.manifest["seeds"] == [3]
    with pytest.raises(RunFolderError, match=r"holds a run already, see its config\.json"):
        RunFolder.create_at(tmp_path, "rlvr", {"seed": 3})


def test_another_configuration_cannot_be_resumed(tmp_path: Path) -> None:
    config = {"seed": 3, "tasks": ("a", "b"), "rate": 0.1}
    created = RunFolder.create_at(tmp_path, "rlvr", config)
    assert RunFolder.resume(tmp_path, "rlvr", config).manifest == created.manifest
    with pytest.raises(RunFolderError, match=r"started with another rate, tasks \(see its config\.json\)"):
        RunFolder.resume(tmp_path, "rlvr", {**config, "tasks": ["b"], "rate": 0.2})
    with pytest.raises(RunFolderError, match="a run of 'rlvr', not of 'eval'"):
        RunFolder.resume(tmp_path, "eval", config)


def test_what_does_not_change_the_past_may_change(tmp_path: Path) -> None:
    config = {"seed": 3, "workers": 1, "training": {"steps": 4, "rate": 0.1}}
    RunFolder.create_at(tmp_path, "rlvr", config).write_summary({"steps": 4})
    longer = {"seed": 3, "workers": 2, "training": {"steps": 8, "rate": 0.1}}
    with pytest.raises(RunFolderError, match="another workers "):
        RunFolder.resume(tmp_path, "rlvr", longer, may_change=["training.steps"])
    with pytest.raises(RunFolderError, match=r"another training\.rate "):
        RunFolder.resume(
            tmp_path, "rlvr", {**config, "training": {"steps": 4, "rate": 0.2}}, may_change=["training.steps"]
        )
    run = RunFolder.resume(tmp_path, "rlvr", longer, may_change=["training.steps", "workers"])
    assert RunFolder.open(tmp_path).config == config, "nothing is stored before record_resume"
    run.record_resume()
    opened = RunFolder.open(tmp_path)
    assert opened.config == longer
    assert opened.summary is None, "the run is to be continued"
    assert opened.manifest["resumed"][0]["changed"] == {"workers": 2, "training.steps": 8}
    RunFolder.resume(tmp_path, "rlvr", longer).record_resume()
    assert "changed" not in RunFolder.open(tmp_path).manifest["resumed"][1]


def test_facts_are_pinned_once(run: RunFolder) -> None:
    run.pin(tasks=("a", "b"))
    again = RunFolder.open(run.path)
    again.pin(tasks=["a", "b"], algorithm={"name": "grpo"})
    with pytest.raises(RunFolderError, match=r"another tasks \(see its manifest\.json\)"):
        RunFolder.open(run.path).pin(tasks=["b"], algorithm={"name": "grpo"})


def test_checkpoints_are_whole_and_the_newest_stay(run: RunFolder) -> None:
    assert run.checkpoints == []
    for step in (1, 2, 10):
        with run.checkpoint(f"step-{step:06d}") as folder:
            (folder / "state").write_text(str(step))

    def interrupted() -> None:
        with run.checkpoint("step-000010") as folder:
            (folder / "state").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(path.name, (path / "state").read_text()) for path in run.checkpoints] == [
        ("step-000001", "1"),
        ("step-000002", "2"),
        ("step-000010", "10"),
    ]
    run.keep_checkpoints(2)
    assert [path.name for path in run.checkpoints] == ["step-000002", "step-000010"]


def test_a_runs_metrics_are_cut_back_to_a_step(run: RunFolder) -> None:
    for step in (1, 2, 3):
        run.metrics.append({"step": step, "loss": float("inf") if step == 2 else 0.5, "note": "n"})
    run.metrics.path.write_text(run.metrics.path.read_text() + '{"step": 4, "lo')
    again = RunFolder.open(run.path).metrics
    again.cut(3)
    again.append({"step": 3, "loss": 0.25})
    assert again.records() == [
        {"step": 1, "loss": 0.5, "note": "n"},
        {"step": 2, "loss": None, "note": "n"},
        {"step": 3, "loss": 0.25},
    ]


@dataclass
class Broken:
    cost: float = float("inf")


def test_a_configuration_json_cannot_hold_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'quickstart'"):
        RunFolder.create(tmp_path / "runs", "quickstart", Broken())
    assert not (tmp_path / "runs").exists()


def test_the_summary_is_strict_json(run: RunFolder) -> None:
    run.write_summary({"pass@1": 0.5})
    assert run.summary == {"pass@1": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_summary({"pass@1": float("nan")})
    assert run.summary == {"pass@1": 0.5}


def test_two_processes_cannot_work_on_one_run(run: RunFolder) -> None:
    attempt = (
        "import sys; from pathlib import Path; from ra3gym.errors import RunFolderError\n"
        "from ra3gym.runs.folder import RunFolder\n"
        "try:\n    with RunFolder.open(Path(sys.argv[1])).exclusive(): print('entered')\n"
        "except RunFolderError: print('refused')\n"
    )

    def other_process() -> str:
        done = subprocess.run([sys.executable, "-c", attempt, run.path], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    with run.exclusive():
        assert other_process() == "refused"
    assert other_process() == "entered"


def test_what_a_killed_process_had_half_written_is_removed_and_nothing_else(run: RunFolder) -> None:
    checkpoint = run.path / "checkpoints" / ".base.x1y2.tmp"
    (checkpoint / "new").mkdir(parents=True)
    (checkpoint / "new" / "config.json").write_text("{")
    (run.path / ".summary.json.77.tmp").write_text("{")
    (run.path / ".notes").write_text("the user's")
    with run.exclusive():
        hidden = {path.name for path in run.path.rglob(".*")}
    assert hidden == {".lock", ".notes"}


@pytest.mark.parametrize("name", ["../up", "a/b", ".", "..", ".hidden", "a~b", "ünder", "pass@1", "ra3-shuffled"])
def test_names_stay_inside_their_folder(tmp_path: Path, name: str) -> None:
    quoted = quote_name(name)
    assert (tmp_path / quoted).resolve().parent == tmp_path.resolve()
    assert not quoted.startswith(".")


def test_metrics_are_merged_in_order(run: RunFolder) -> None:
    with MetricsLogger(run, tensorboard=False) as metrics:
        metrics.log(1, seed=11, arm="ntp", stage="midtrain", loss=2.0)
        metrics.log(1, seed=9, arm="ntp", stage="midtrain", loss=3.0, reward=None)
        metrics.log(2, seed=9, arm="ntp", stage="midtrain", loss=float("nan"))
    assert records(merge_metrics(run)) == [
        {"seed": 9, "arm": "ntp", "stage": "midtrain", "step": 1, "loss": 3.0, "reward": None},
        {"seed": 9, "arm": "ntp", "stage": "midtrain", "step": 2, "loss": None},
        {"seed": 11, "arm": "ntp", "stage": "midtrain", "step": 1, "loss": 2.0},
    ]


def test_a_unit_run_again_forgets_its_old_lines_and_no_others(run: RunFolder) -> None:
    with MetricsLogger(run, tensorboard=False) as metrics:
        for step in range(4):
            metrics.log(step, seed=9, arm="ntp", stage="rlvr", reward=0.0)
            metrics.log(step, seed=9, arm="ra3", stage="rlvr", reward=0.0)
        metrics.drop(9, "ntp", "rlvr")
        metrics.drop(9, "ra3", "rlvr", from_step=2)
        metrics.drop(9, "never-logged", "rlvr")
        metrics.log(0, seed=9, arm="ntp", stage="rlvr", reward=1.0)
    steps = [(record["arm"], record["step"], record["reward"]) for record in records(merge_metrics(run))]
    assert steps == [("ntp", 0, 1.0), ("ra3", 0, 0.0), ("ra3", 1, 0.0)]


def test_a_line_torn_by_a_kill_is_dropped(run: RunFolder) -> None:
    with MetricsLogger(run, tensorboard=False) as metrics:
        metrics.log(1, seed=9, arm="ntp", stage="midtrain", loss=3.0)
    [file] = (run.path / "metrics").glob("*/*/*.jsonl")
    file.write_text(file.read_text() + '{"seed": 9, "arm": "nt')
    assert len(records(merge_metrics(run))) == 1
    with MetricsLogger(run, tensorboard=False) as metrics:
        metrics.log(2, seed=9, arm="ntp", stage="midtrain", loss=2.0)
    assert [record["step"] for record in records(merge_metrics(run))] == [1, 2]


def test_processes_log_different_units_of_one_seed_at_once(run: RunFolder) -> None:
    log_many = (
        "import sys; from pathlib import Path; from ra3gym.runs.folder import RunFolder\n"
        "from ra3gym.runs.metrics import MetricsLogger\n"
        "metrics = MetricsLogger(RunFolder.open(Path(sys.argv[1])), tensorboard=False)\n"
        "for step in range(200): metrics.log(step, seed=9, arm=sys.argv[2], stage='rlvr', reward=step / 200)\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", log_many, run.path, arm]) for arm in ("ntp", "ra3")]
    assert [worker.wait() for worker in workers] == [0, 0]
    merged = records(merge_metrics(run))
    assert [(r["arm"], r["step"]) for r in merged] == [(arm, step) for arm in ("ntp", "ra3") for step in range(200)]


def test_tensorboard_shows_the_same_numbers_and_forgets_a_dropped_unit(run: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def rewards() -> list[tuple[int, float]]:
        events = EventAccumulator(str(run.path / "tensorboard" / "seed-9" / "ra3" / "rlvr"))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("rlvr/reward")]

    with MetricsLogger(run) as metrics:
        metrics.log(1, seed=9, arm="ra3", stage="rlvr", reward=0.25)
        metrics.log(2, seed=9, arm="ra3", stage="rlvr", reward=0.5)
    assert rewards() == [(1, 0.25), (2, 0.5)]
    with MetricsLogger(run) as metrics:
        metrics.drop(9, "ra3", "rlvr")
        metrics.log(1, seed=9, arm="ra3", stage="rlvr", reward=0.75)
    assert rewards() == [(1, 0.75)]


def test_a_package_outside_its_own_checkout_has_no_revision(tmp_path: Path) -> None:
    package = tmp_path / "venv" / "site-packages" / "ra3gym"
    package.mkdir(parents=True)
    assert git_revision(package) is None
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert git_revision(package) is None
