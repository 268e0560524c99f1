"""`ra3gym rlvr`: whole runs, killed and interrupted ones, two processes, and what it says to mistakes."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
import torch
from accelerate.tracking import LoggerType
from rich.console import Console

from ra3gym import lm
from ra3gym.agents.rlvr import RLVRConfig, RLVRStep, algorithm, train
from ra3gym.agents.rlvr.algorithms import composition
from ra3gym.agents.rlvr.fit import check_fit
from ra3gym.cli import main
from ra3gym.errors import ConfigError, DataError, RunFolderError
from ra3gym.experiments.commands.rlvr import PostTrainingConfig, resume_post_training, start_post_training
from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.verify import Graded

# Whatever is an expression passes: random tokens do so now and then, and can learn to.
TASKS = [
    {
        "task_id": f"guess/{number}",
        "prompt": f"def f{number}(x):\n    return {number} if x else ",
        "entry_point": f"f{number}",
        "test": f"def check(candidate):\n    assert candidate(1) == {number}\n",
    }
    for number in range(4)
]
TRAINING = RLVRConfig(
    steps=5,
    tasks_per_step=4,
    group_size=4,
    learning_rate=1e-2,
    max_new_tokens=2,
    checkpoint_every=2,
    keep_checkpoints=1,
    min_entropy=0.0,
)
OPTIONS = (
    *("--tasks", "jsonl:guess.jsonl", "--steps", "5", "--tasks-per-step", "4", "--group-size", "4"),
    *("--learning-rate", "1e-2", "--max-new-tokens", "2", "--checkpoint-every", "2", "--keep-checkpoints", "1"),
    *("--min-entropy", "0", "--workers", "1", "--device", "cpu"),
)

# GRPO under another name; it sends the signal that a file names, to itself or to all that a terminal's Ctrl-C reaches,
# in the middle of its fourth step.
SIGNALLED = """
import os, signal
from pathlib import Path
from ra3gym.agents.rlvr import algorithm, register_advantage, register_algorithm

steps = 0

def advantages(batch, settings):
    global steps
    steps += 1
    if steps == 4 and Path("signal").exists():
        number = int(Path("signal").read_text())
        Path("signal").unlink()
        (os.killpg if number == signal.SIGINT else os.kill)(os.getpid(), number)
    return algorithm("grpo").advantages(batch)

register_advantage("signalled", advantages)
register_algorithm(algorithm("grpo", name="signalled", advantage="signalled"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with four tasks in guess.jsonl; what plug-ins register is forgotten after the test."""
    write_jsonl(tmp_path / "guess.jsonl", TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry = importlib.import_module("ra3gym.agents.rlvr.algorithms.registry")
    monkeypatch.setattr(registry._ALGORITHMS, "_entries", dict(registry._ALGORITHMS._entries))
    monkeypatch.setattr(composition._ADVANTAGES, "_entries", dict(composition._ADVANTAGES._entries))
    yield tmp_path
    sys.modules.pop("signalled", None)


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def rlvr(*arguments: object, launcher: Sequence[str] = ("-m",)) -> subprocess.CompletedProcess[str]:
    """Run the command in the current folder, in a session of its own."""
    return subprocess.run(
        [sys.executable, *launcher, "ra3gym", "rlvr", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        start_new_session=True,
    )


def in_process(model: Path, training: RLVRConfig = TRAINING, **changes: Any) -> tuple[Path, str]:
    """A run here that comes to its end: its folder and what it printed."""
    values: dict[str, Any] = {"tasks": ("jsonl:guess.jsonl",), "workers": 1, "device": "cpu", "trackers": ()}
    config = PostTrainingConfig(model=str(model), training=training, **values | changes)
    printed = StringIO()
    assert start_post_training(config, Console(file=printed, width=110))
    return run_of(printed.getvalue()), printed.getvalue()


def run_of(printed: str) -> Path:
    """The run folder that was told, once."""
    (line,) = (line for line in printed.splitlines() if line.startswith("Run folder: "))
    return Path(line.removeprefix("Run folder: "))


def history(run: Path) -> list[RLVRStep]:
    """What metrics.jsonl holds, times apart."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [replace(RLVRStep(**json.loads(line)), sample_seconds=0.0, train_seconds=0.0) for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = lm.load(folder).model.state_dict()
    return found


def test_a_whole_run(tiny_model_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = rlvr("--model", tiny_model_folder, *OPTIONS)
    assert done.returncode == 0, done.stderr
    run = run_of(done.stdout)
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "manifest.json", "metrics.jsonl", "summary.json", ".lock"),
        *("tensorboard", "checkpoints", "model"),
    }
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000005"]
    assert {path.name for path in (run / "checkpoints" / "step-000005").iterdir()} == {"model", "state.pt"}
    config = json.loads((run / "config.json").read_text())
    assert config["tasks"] == ["jsonl:guess.jsonl"]
    assert config["training"]["tasks_per_step"] == 4
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["kind"] == "rlvr"
    assert manifest["resumed"] == []
    assert manifest["pinned"]["algorithm"]["name"] == "grpo"
    assert manifest["pinned"]["tasks"] == [task["task_id"] for task in TASKS]

    steps = history(run)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    assert any(0 < step.reward < 1 and step.grad_norm > 0 for step in steps)
    events = EventAccumulator(str(run / "tensorboard" / "rlvr")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [
        (step.step, pytest.approx(step.reward)) for step in steps
    ]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 5
    assert summary["tokens"] == sum(step.tokens for step in steps)
    assert summary["first"]["reward"] == pytest.approx(sum(step.reward for step in steps) / 5)

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert lm.latent_ids(tokenizer) == lm.latent_ids(lm.load(tiny_model_folder).tokenizer)
    assert len(lm.latent_ids(tokenizer)) >= 4
    plain = AutoModelForCausalLM.from_pretrained(run / "model").state_dict()
    before = weights(tiny_model_folder)
    assert plain.keys() == before.keys()
    assert any(not torch.equal(weight, before[name]) for name, weight in plain.items())

    assert "tasks: jsonl:guess.jsonl, 4 (all of it: do not evaluate on it)" in done.stdout
    assert f"ra3gym eval --model {run / 'model'} --tasks TASKS" in done.stdout
    told = done.stdout[done.stdout.index(f"grpo on jsonl:guess.jsonl, from {tiny_model_folder}: 5 steps") :]
    assert f"{summary['last']['pass_rate']:.3g}" in told
    assert "rlvr 100%" not in told, "the progress ends ahead of the summary"

    assert main(["report", str(run)]) == 0
    assert told.strip() in capsys.readouterr().out

    # Resuming it trains nothing anew, whatever its last checkpoint was.
    written = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["rlvr", "--resume", str(run)]) == 0
    again = capsys.readouterr().out
    assert "has finished" in again
    assert told.strip() in again
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == written


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_early_goes_on_as_if_it_had_not(
    tiny_model_folder: Path, folder: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "signalled.py").write_text(SIGNALLED)
    (folder / "signal").write_text(str(int(number)))
    ended = rlvr("--model", tiny_model_folder, *OPTIONS, "--plugins", "signalled", "--algorithm", "signalled")
    (run,) = Path("runs").iterdir()
    done, stored = ([1, 2, 3], "step-000002") if number == signal.SIGKILL else ([1, 2, 3, 4], "step-000004")
    assert [step.step for step in history(run)] == done
    assert [path.name for path in (run / "checkpoints").iterdir()] == [stored]
    assert main(["report", str(run)]) == 1
    assert f"ra3gym rlvr --resume {run}" in capsys.readouterr().err
    if number == signal.SIGKILL:
        assert ended.returncode == -signal.SIGKILL
        resumed = rlvr("--resume", run)  # in a process of its own, which must know the plug-in too
        assert resumed.returncode == 0, resumed.stderr
        assert run_of(resumed.stdout) == run
    else:
        assert ended.returncode == 130, ended.stderr
        assert ended.stderr == ""
        assert ended.stdout.splitlines()[-1] == f"Stopped, and stored. Continue with: ra3gym rlvr --resume {run}"
        assert resume_post_training(run, Console(file=StringIO()))
    assert len(json.loads((run / "manifest.json").read_text())["resumed"]) == 1
    whole, _ = in_process(tiny_model_folder, algorithm="signalled", plugins=("signalled",))
    assert history(run) == history(whole)
    expected = weights(whole / "model")
    for name, weight in weights(run / "model").items():
        assert torch.equal(weight, expected[name])


def test_a_run_killed_ahead_of_its_first_step_can_be_resumed(tiny_model_folder: Path, folder: Path) -> None:
    whole, _ = in_process(tiny_model_folder, set=("kl_coefficient=0.1",))
    for before_pinning in (True, False):
        run, _ = in_process(tiny_model_folder, set=("kl_coefficient=0.1",))
        for path in run.iterdir():
            if path.name not in {"config.json", "manifest.json"}:
                path.rename(folder / f"{run.name}-{path.name}")
        if before_pinning:
            manifest = json.loads((run / "manifest.json").read_text())
            del manifest["pinned"]
            (run / "manifest.json").write_text(json.dumps(manifest))
        assert resume_post_training(run, Console(file=StringIO()))
        assert history(run) == history(whole)
        assert all(step.kl is not None for step in history(run))


def test_what_cannot_be_resumed(tiny_model_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rlvr", "--resume", "nowhere"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nowhere is not a run")
    assert main(["rlvr", "--resume", "nowhere", "--learning-rate", "3"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "under the run's own configuration: leave --learning-rate out. It may change" in line
    run, _ = in_process(tiny_model_folder, replace(TRAINING, steps=1))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"kind": "quickstart"}))
    with pytest.raises(RunFolderError, match="a run of 'quickstart'"):
        resume_post_training(run, Console(file=StringIO()))


def test_a_finished_run_goes_on_with_more_steps(
    tiny_model_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = in_process(tiny_model_folder, replace(TRAINING, steps=3))
    whole, _ = in_process(tiny_model_folder)
    options = ["--steps", "5", "--checkpoint-every", "1", "--workers", "2"]
    assert main(["rlvr", "--resume", str(run), *options]) == 0
    assert "5 steps" in capsys.readouterr().out
    assert history(run) == history(whole)
    expected = weights(whole / "model")
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(run / "model").items())
    config = json.loads((run / "config.json").read_text())
    assert (config["training"]["steps"], config["training"]["checkpoint_every"], config["workers"]) == (5, 1, 2)
    (resumed,) = json.loads((run / "manifest.json").read_text())["resumed"]
    assert resumed["changed"] == {"training.steps": 5, "training.checkpoint_every": 1, "workers": 2}
    assert main(["rlvr", "--resume", str(run), "--steps", "4"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: steps=4: {run} has done 5 steps, give at least as many"
    assert main(["rlvr", "--resume", str(run), "--workers", "0"]) == 1


def test_a_falling_learning_rate_allows_no_other_number_of_steps(tiny_model_folder: Path, folder: Path) -> None:
    run, _ = in_process(tiny_model_folder, replace(TRAINING, steps=2, schedule="linear"))
    with pytest.raises(ConfigError, match=r"steps=5: the learning rate .* over its 2 steps \(schedule='linear'\)"):
        resume_post_training(run, Console(file=StringIO()), steps=5)


LAUNCHER = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
    *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port", "0", "-m"),
)


def test_two_processes_are_one_run(tiny_model_folder: Path, folder: Path) -> None:
    done = rlvr("--model", tiny_model_folder, *OPTIONS, launcher=LAUNCHER)
    assert done.returncode == 0, done.stderr
    (run,) = Path("runs").iterdir()
    assert run_of(done.stdout) == run
    for told in ("tasks: ", "grpo on jsonl:guess.jsonl", "evaluate it: "):
        assert sum(line.startswith(told) for line in done.stdout.splitlines()) == 1
    assert len(list(run.rglob("events.out.tfevents.*"))) == 2, "one of metrics, one of hyper-parameters"
    alone, _ = in_process(tiny_model_folder)
    assert [step.step for step in history(run)] == [1, 2, 3, 4, 5]
    for name in ("reward", "pass_rate", "informative", "tokens"):
        assert [getattr(step, name) for step in history(run)] == [getattr(step, name) for step in history(alone)]
    expected = weights(alone / "model")
    for name, weight in weights(run / "model").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_ctrl_c_ends_both_processes_with_a_checkpoint_and_one_goes_on(tiny_model_folder: Path, folder: Path) -> None:
    # The launcher, whose process group Ctrl-C reaches, passes the signal on to its processes.
    to_launcher = "os.killpg(os.getpgid(os.getppid()), number)"
    of_the_first = 'os.environ.get("RANK", "0") == "0" and Path("signal").exists()'
    source = SIGNALLED.replace('Path("signal").exists()', of_the_first)
    (folder / "signalled.py").write_text(
        source.replace("(os.killpg if number == signal.SIGINT else os.kill)(os.getpid(), number)", to_launcher)
    )
    (folder / "signal").write_text(str(int(signal.SIGINT)))
    # So many steps that the signal, which takes its time through the launcher, comes ahead of the last one.
    options = ("--model", tiny_model_folder, *OPTIONS, "--plugins", "signalled", "--algorithm", "signalled")
    ended = rlvr(*options, "--steps", 60, launcher=LAUNCHER)
    assert ended.returncode != 0
    (run,) = Path("runs").iterdir()
    assert f"Stopped, and stored. Continue with: ra3gym rlvr --resume {run}" in ended.stdout.splitlines()
    done = len(history(run))
    assert 4 <= done < 60
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{done:06d}"]
    assert resume_post_training(run, Console(file=StringIO()))
    assert [step.step for step in history(run)] == list(range(1, 61))


MISTAKES = {
    "algorithm": (["--algorithm", "gropo"], "unknown RLVR algorithm 'gropo'.*Did you mean 'grpo'"),
    "field": (["--set", "clip_hi=3"], "'clip_hi'; known: advantage, .*Did you mean 'clip_high'"),
    "value": (["--set", "clip_high=x"], "clip_high='x'"),
    "no value": (["--set", "clip_high"], "'clip_high': give settings as key=value"),
    "tasks": (["--tasks", "idiom"], "unknown task set 'idiom'.*idioms"),
    "tasks file": (["--tasks", "jsonl:none.jsonl"], "none.jsonl"),
    "model": (["--model", "no/such/model"], "no model at no/such/model"),
    "steps": (["--steps=-1"], "steps=-1: give a whole number of at least 0"),
    "seed": (["--seed=-1"], "seed=-1: give 0"),
    "workers": (["--workers", "0"], "workers=0"),
    "judge": (["--judge-seconds", "0"], "seconds must be positive"),
    "tracker": (["--trackers", "tensorbord"], "unknown tracker 'tensorbord'.*Did you mean 'tensorboard'"),
    "no url": (["--generate", "vllm"], "--generate vllm and --vllm-url URL belong together"),
    "no server": (["--vllm-url", "http://localhost:1"], "--generate vllm and --vllm-url URL belong together"),
    "wrong url": (["--generate", "vllm", "--vllm-url", "localhost"], "vLLM URL 'localhost'"),
    "same id": (["--tasks", "jsonl:guess.jsonl,jsonl:guess.jsonl"], "task id 'guess/0' occurs 2 times"),
    "room": (["--max-new-tokens", "5000"], "max_new_tokens=5000 leaves no room"),
    "scope": (["--act-on", "latent"], "unknown scope 'latent'.*Did you mean 'latents'"),
    "group": (["--group-size", "1"], "group_size=1: 'grpo' compares the samples of a task"),
    "minibatches": (["--set", "minibatches=5"], "minibatches=5.*tasks_per_step=4 gives a process 4"),
    "plug-in": (["--plugins", "no_such_module"], "cannot import the plug-in 'no_such_module'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line_and_leave_no_run(
    mistake: str, tiny_model_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, expected = MISTAKES[mistake]
    assert_refused(["--model", str(tiny_model_folder), *OPTIONS, *options], expected, capsys)


def test_a_tracker_without_its_package(
    tiny_model_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard = [LoggerType.TENSORBOARD]
    monkeypatch.setattr(
        accelerate.tracking, "get_available_trackers", lambda: tensorboard
    )  # whatever is installed here
    options = ["--model", str(tiny_model_folder), *OPTIONS, "--trackers", "tensorboard,wandb"]
    assert_refused(options, "tracker 'wandb': its package is not installed. pip install wandb", capsys)


def assert_refused(options: Sequence[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rlvr", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(expected, line)
    assert not Path("runs").exists()


def test_tasks_that_the_processes_cannot_share(tiny_model_folder: Path) -> None:
    loaded = lm.load(tiny_model_folder)
    with pytest.raises(ConfigError, match="tasks_per_step=3 is not a multiple of the 2 processes"):
        check_fit(algorithm("grpo"), replace(TRAINING, tasks_per_step=3), loaded, 2)
    with pytest.raises(ConfigError, match="tasks_per_step=4 gives a process 2"):
        check_fit(algorithm("grpo", minibatches=3), TRAINING, loaded, 2)
    assert check_fit(algorithm("grpo", minibatches=2), TRAINING, loaded, 2).mark([[5]]).acts_RT.tolist() == [[True]]


def test_prompts_without_room_are_left_out(tiny_model_folder: Path, folder: Path) -> None:
    long = TASKS[0] | {"task_id": "long", "prompt": "# " + "long " * 600 + "\n" + str(TASKS[0]["prompt"])}
    write_jsonl(folder / "guess.jsonl", [long, *TASKS])
    run, printed = in_process(tiny_model_folder, replace(TRAINING, steps=1))
    assert "1 task(s) left out: their prompts leave less than max_new_tokens=2" in printed
    pinned = json.loads((run / "manifest.json").read_text())["pinned"]
    assert pinned["tasks"] == [task["task_id"] for task in TASKS]


def test_a_short_run_says_each_mean_once(tiny_model_folder: Path, folder: Path) -> None:
    _, printed = in_process(tiny_model_folder, replace(TRAINING, steps=1))
    assert ": 1 step, " in printed
    assert "mean of 1 step " in printed
    assert "first" not in printed
    assert " last" not in printed
    assert "training processes: 1, on cpu; judge: 1 of each" in printed
    _, printed = in_process(tiny_model_folder, replace(TRAINING, steps=6))
    (heading,) = (line for line in printed.splitlines() if "mean of 5 steps" in line)
    assert heading.split()[-2:] == ["first", "last"]


def test_no_steps_store_the_model_as_it_is(tiny_model_folder: Path, folder: Path) -> None:
    run, printed = in_process(tiny_model_folder, replace(TRAINING, steps=0))
    assert history(run) == []
    assert ": 0 steps, 0 tokens" in printed
    before = weights(tiny_model_folder)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(run / "model").items())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("grpo", {"max_new_tokens": 1}),
        ("dapo", {"max_new_tokens": 1}),
        ("reinforce++", {"group_size": 1}),
        ("ppo", {"group_size": 1, "tasks_per_step": 1, "max_new_tokens": 1}),
        ("grpo", {"rows_per_sample": 1, "tokens_per_forward": 1}),
    ],
)
def test_the_smallest_of_everything(tiny_model_folder: Path, folder: Path, name: str, changes: dict[str, int]) -> None:
    training = replace(TRAINING, **{"steps": 3, **changes})
    run, _ = in_process(tiny_model_folder, training, algorithm=name)
    steps = history(run)
    assert [step.step for step in steps] == [1, 2, 3]
    assert all(1 <= step.length <= training.max_new_tokens for step in steps)
    assert all(weight.isfinite().all() for weight in weights(run / "model").values())


def test_a_tokenizer_without_pad_token(tiny_model_folder: Path, folder: Path) -> None:
    loaded = lm.load(tiny_model_folder)
    pad = loaded.tokenizer.pad_token
    assert pad is not None
    loaded.tokenizer.pad_token = None
    loaded.model.config.pad_token_id = loaded.model.generation_config.pad_token_id = None
    lm.save(loaded.model, loaded.tokenizer, folder / "unpadded")
    assert lm.load(folder / "unpadded").tokenizer.pad_token is None
    run, _ = in_process(folder / "unpadded")
    padded, _ = in_process(tiny_model_folder)
    assert history(run) == history(padded)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), None])
def test_rewards_of_ones_own_are_checked(tiny_model_folder: Path, folder: Path, wrong: float | None) -> None:
    """Not finite: left out, up to `max_ungraded`. One too few (`None`): the reward is broken."""

    class Wrong:
        def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
            graded: Future[list[Graded]] = Future()
            values = [0.5] * (len(texts) - 1) + ([] if wrong is None else [wrong])
            graded.set_result([Graded(value, False) for value in values])
            return graded

    tasks = load_tasks("jsonl:guess.jsonl")
    expected = "graded 15 programs of 16" if wrong is None else r"1 of 16 programs have no reward.* task 'guess/\d'"
    with pytest.raises(DataError, match=expected):
        train(str(tiny_model_folder), tasks, config=replace(TRAINING, max_ungraded=0.0), reward=Wrong())
    if wrong is not None:
        history = train(str(tiny_model_folder), tasks, config=TRAINING, reward=Wrong()).history
        assert [step.ungraded for step in history] == [1 / 16] * 5


def test_completions_that_end_at_once(tiny_model_folder: Path, folder: Path) -> None:
    """Only the end of text may be written: all programs are empty, all alike, and nothing is learned."""
    loaded = lm.load(tiny_model_folder)
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    only_end_V = torch.zeros(loaded.model.config.vocab_size, dtype=torch.bool)
    only_end_V[loaded.tokenizer.eos_token_id] = True
    texts: list[str] = []

    def reward(task: CodeTask, text: str) -> float:
        texts.append(text)
        return 0.0

    # A prompt that ends with its line forces no text, which a completion would have to write first.
    tasks = [replace(task, prompt=f"{task.prompt}\n") for task in load_tasks("jsonl:guess.jsonl")]
    result = train(loaded, tasks, config=TRAINING, reward=reward, allowed_mask_V=only_end_V)
    assert set(texts) == {""}
    assert all(step.entropy == 0 and step.grad_norm == 0 and step.truncated == 0 for step in result.history)
    assert all(torch.equal(weight, before[name]) for name, weight in result.loaded.model.state_dict().items())


def test_a_pruned_run_samples_what_references_hold(tiny_model_folder: Path, folder: Path) -> None:
    records = [task | {"canonical_solution": f"{number}\n"} for number, task in enumerate(TASKS)]
    write_jsonl(folder / "solved.jsonl", records)
    run, printed = in_process(tiny_model_folder, tasks=("jsonl:solved.jsonl",), prune_to_expert=1.0)
    pruned = json.loads((run / "pruned_actions.json").read_text())
    assert f"sampling {len(pruned['kept'])} of {pruned['num_actions']} tokens" in printed
    assert pruned["rule"] == "expert frequency"
    free, _ = in_process(tiny_model_folder)
    assert not (free / "pruned_actions.json").exists()
    # Fewer tokens to choose from: less entropy from the first step on.
    assert history(run)[0].entropy < history(free)[0].entropy
    with pytest.raises(DataError, match="prune_to_expert"):
        in_process(tiny_model_folder, prune_to_expert=0.9)
