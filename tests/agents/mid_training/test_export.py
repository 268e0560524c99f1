"""What is exported is what is trained: a plain loop over the file learns what the M-step learns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_dataset

from ra3gym import lm
from ra3gym.abstractions.latents.corpus import prompt_words
from ra3gym.abstractions.latents.dataset import AnnotatedTraces, save_annotated
from ra3gym.abstractions.latents.document import DocumentWriter
from ra3gym.agents.mid_training import RA3, MStepConfig, MStepProgress, distill
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.tasks import ExpertTrace

STEPS = 6


def plain_losses(model: Any, rows: Any, config: MStepConfig) -> list[float]:
    """The loss of each step of an ordinary training loop, all rows in one batch."""
    longest = max(len(ids) for ids in rows["input_ids"])
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full((len(rows), longest), -100)
    attention = torch.zeros(len(rows), longest, dtype=torch.int64)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[index, :length] = torch.tensor(row["input_ids"])
        attention[index, :length] = 1
        labels[index, :length] = torch.where(torch.tensor(row["loss_mask"]), ids[index, :length], -100)
    predicted = sum(sum(mask) for mask in rows["loss_mask"])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.95))
    losses = []
    for step in range(STEPS):
        share = step * predicted / config.tokens
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (share + 0.002) / 0.05) * (1.0 - 0.9 * share)
        loss = model(input_ids=ids, attention_mask=attention, labels=labels).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_plain_loop_over_the_export_learns_the_same(
    traces: list[ExpertTrace], tokenizer: Any, tmp_path: Path
) -> None:
    planted = OracleEStep().infer(traces, np.random.default_rng(0))
    documents = tuple(RA3.documents(DocumentWriter(tokenizer), traces, planted, np.random.default_rng(0)))[:12]
    written = [prompt_words(document.prompt) for document in documents]
    assert [] in [prompt_words(trace.prompt) for trace in traces[:12]]
    assert all(written), "prompts that were missing are exported as they are trained on"
    save_annotated(AnnotatedTraces(documents, planted.names), tmp_path / "traces.parquet")
    rows = load_dataset(
        "parquet", data_files=str(tmp_path / "traces.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    model = lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, seed=0)
    predicted = sum(len(document.ids) - 1 for document in documents)
    config = MStepConfig(
        tokens=STEPS * predicted, optimizer="adamw", learning_rate=1e-2, tokens_per_batch=predicted + len(documents)
    )
    course: list[MStepProgress] = []
    distill(
        copy.deepcopy(model),
        [list(document.ids) for document in documents],
        config,
        seed=0,
        on_progress=course.append,
    )
    assert [progress.tokens for progress in course] == [predicted * step for step in range(1, STEPS + 1)]
    assert plain_losses(model, rows, config) == pytest.approx([progress.loss for progress in course], abs=2e-4)
    assert course[-1].loss < course[0].loss - 0.1
