"""The checkpoint that ships in the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ra3gym.lm
from ra3gym.experiments.studies.evaluation import evaluate
from ra3gym.lm import latent_ids, load
from ra3gym.tasks import load_tasks
from ra3gym.verify import Judge

FOLDER = Path(ra3gym.lm.__file__).parent / "embedded"
PROVENANCE = json.loads((FOLDER / "provenance.json").read_text())


def test_it_is_what_the_recorded_command_made() -> None:
    # The words of the latents were inferred later; another test holds them to the model.
    files = {file.name for file in FOLDER.iterdir()} - {"provenance.json", "latents.json"}
    assert files == set(PROVENANCE["sha256"])
    for name, digest in PROVENANCE["sha256"].items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert PROVENANCE["command"] == "make embedded"
    assert PROVENANCE["git"]["dirty"] is False


def test_it_is_small() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 2_000_000


def test_plain_transformers_loads_the_same_model() -> None:
    ours = load("embedded")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer("# sort\ndef f(xs):\n", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, ours.model(ids).logits)
    assert tokenizer.get_vocab() == ours.tokenizer.get_vocab()


def test_it_decides_by_latents_and_solves_held_out_tasks() -> None:
    model = load("embedded")
    assert len(latent_ids(model.tokenizer)) == PROVENANCE["config"]["codebook"]["num_latents"]
    tasks = load_tasks("idioms", split="eval")
    with Judge(workers=1) as judge:
        found = evaluate(
            model.model, model.tokenizer, tasks[:32], judge, samples=2, max_new_tokens=224, temperature=0.5, seed=0
        )
    assert found.pass_at[1] > 0.3
    assert 2 <= found.decisions <= 10
