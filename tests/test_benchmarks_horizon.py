"""The horizon's benchmark: few tasks when asked for few, and a model without latents is told ahead."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ra3gym import lm

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "horizon.py"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("horizon_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_only_the_first_tasks_are_played(benchmark: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "horizon.json"
    benchmark.main(benchmark.Options(output=file, limit=3, num_envs=2, max_new_tokens=8))
    written: dict[str, Any] = json.loads(file.read_text())
    assert written["options"]["limit"] == 3
    assert [level["programs"] for level in written["levels"].values()] == [3, 3]


def test_a_model_without_latents_is_told_ahead(benchmark: ModuleType, tmp_path: Path) -> None:
    tokenizer: Any = lm.train_tokenizer(["x = 1\n"], vocab_size=300)
    lm.save(lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, seed=0), tokenizer, tmp_path / "plain")
    with pytest.raises(SystemExit, match=r"has 0 latent tokens.*ra3gym.lm.add_latents"):
        benchmark.main(benchmark.Options(model=str(tmp_path / "plain"), output=tmp_path / "horizon.json"))
