"""`ra3gym eval` stops where the function ends: the same verdicts for a fraction of the tokens."""

from __future__ import annotations

import json
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ra3gym import lm
from ra3gym.experiments.commands.eval import ModelEvaluationConfig, evaluate_model
from ra3gym.experiments.studies.evaluation import GradedSamples, graded_batches
from ra3gym.tasks import load_tasks
from ra3gym.tasks.answers import answer_reader
from ra3gym.verify import Grader, Judge

LIMIT, SAMPLES, LENGTH = 4, 4, 160


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """The embedded model with another end token: like a base model, it continues after the function."""
    loaded: Any = lm.load("embedded")
    loaded.tokenizer.eos_token = loaded.tokenizer.pad_token
    loaded.model.generation_config.eos_token_id = loaded.tokenizer.eos_token_id
    loaded.model.config.eos_token_id = loaded.tokenizer.eos_token_id
    lm.save(loaded.model, loaded.tokenizer, tmp_path / "base")
    return tmp_path / "base"


def test_programs_end_with_their_function_and_are_graded_alike(base_model: Path, tmp_path: Path) -> None:
    config = ModelEvaluationConfig(
        model=str(base_model),
        tasks="idioms",
        limit=LIMIT,
        n=SAMPLES,
        k=(1,),
        max_new_tokens=LENGTH,
        workers=1,
        output=tmp_path / "runs",
    )
    run = evaluate_model(config, Console(file=StringIO()))
    summary = run.summary
    assert summary is not None

    loaded = lm.load(str(base_model))
    tasks = load_tasks("idioms", limit=LIMIT)
    reader = answer_reader(loaded.tokenizer)
    with Judge(workers=1) as judge:
        batches = graded_batches(
            loaded.model,
            loaded.tokenizer,
            tasks,
            Grader(judge, completion_of=reader),
            samples=SAMPLES,
            max_new_tokens=LENGTH,
            temperature=config.temperature,
            generator=torch.Generator().manual_seed(config.seed),
            batch_size=config.batch_size,
        )
        whole = GradedSamples.joined(list(batches))
    assert summary["tokens"] < 0.8 * sum(map(len, whole.completions))
    written = [json.loads(line)["completion"] for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert written == [reader(task, text) for task, text in zip(whole.tasks, whole.texts, strict=True)]
    statuses = Counter(str(grade.verdict.status) for grade in whole.grades if grade.verdict is not None)
    assert summary["statuses"] == dict(statuses)
