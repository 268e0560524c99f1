"""Annotated traces survive both file formats, and a damaged file is told by file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.dataset import (
    annotated_dataset,
    load_annotated,
    names_file,
    read_annotated,
    save_annotated,
)
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training.e_steps.registry import OracleEStep
from ra3gym.errors import ConfigError, DataError
from ra3gym.lm import add_latents, strip_latents, train_tokenizer
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests

FORMATS = ["jsonl", "parquet"]


def make_trace(prompt: str, *steps: str, name: str = "mine/0") -> ExpertTrace:
    return ExpertTrace(CodeTask(name, prompt, "f", FunctionTests((), ())), steps)


TRACES = [
    make_trace("# up twice\ndef f(n):\n", "    n += 1\n", "    n += 1\n", "    return n\n"),
    make_trace("def f(n):\n", "    return '</script> \\u2028 é'\n", name="mine/1"),
]
INFERRED = Annotations(
    paths=(LatentPath((2, 2, 0), (True, False, True)), LatentPath((0,), (True,))),
    names=((), ("never",), ("up", "twice")),
    gains=((0.25, -1.5, 0.0), (3.0,)),
)


def test_the_rows_by_hand() -> None:
    dataset = annotated_dataset(TRACES, INFERRED)
    assert dataset[0] == {
        "task_id": "mine/0",
        "prompt": "# up twice\ndef f(n):\n",
        "text": "# up twice\ndef f(n):\n<|z2|>    n += 1\n    n += 1\n<|z0|>    return n\n",
        "lines": ["    n += 1\n", "    n += 1\n", "    return n\n"],
        "latents": [2, 2, 0],
        "switches": [True, False, True],
        "segments": [{"latent": 2, "start": 0, "stop": 2}, {"latent": 0, "start": 2, "stop": 3}],
        "gains": [0.25, -1.5, 0.0],
    }
    assert dataset[1]["segments"] == [{"latent": 0, "start": 0, "stop": 1}]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("gains", [True, False])
def test_both_formats_round_trip(suffix: str, gains: bool, tmp_path: Path) -> None:
    inferred = INFERRED if gains else Annotations(INFERRED.paths, INFERRED.names)
    dataset, path = annotated_dataset(TRACES, inferred), tmp_path / "new" / f"traces.{suffix}"
    save_annotated(dataset, inferred.names, path)
    loaded, names = load_annotated(path)
    assert names == INFERRED.names
    assert loaded.features == dataset.features
    assert loaded.to_list() == dataset.to_list()
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, names_file(path).name]

    shorter = annotated_dataset(TRACES[:1], Annotations(inferred.paths[:1], inferred.names))
    save_annotated(shorter, inferred.names, path)
    assert load_annotated(path)[0].to_list() == shorter.to_list()
    names_file(path).unlink()
    assert load_annotated(path)[1] == ((), (), ())


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
segments = st.lists(st.tuples(st.integers(0, 4), st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=texts, parts=segments, suffix=st.sampled_from(FORMATS))
def test_any_text_round_trips(prompt: str, parts: list[tuple[int, list[str]]], suffix: str, tmp_path: Path) -> None:
    path = LatentPath(
        tuple(z for z, lines in parts for _ in lines),
        tuple(n == 0 for _, lines in parts for n in range(len(lines))),
    )
    trace = make_trace(prompt, *(line for _, lines in parts for line in lines))
    dataset = annotated_dataset([trace], Annotations((path,), ((prompt,),) * 5))
    save_annotated(dataset, ((prompt,),) * 5, tmp_path / f"traces.{suffix}")
    (row,), names = read_annotated(tmp_path / f"traces.{suffix}")
    assert names == ((prompt,),) * 5
    assert (row.path, row.lines, row.prompt, row.gains) == (path, trace.steps, prompt, None)
    assert [z for z, _, _ in row.segments] == [z for z, _ in parts]


def test_the_text_without_latents_is_the_program(traces: list[ExpertTrace], tokenizer: Any) -> None:
    planted = OracleEStep().infer(traces, np.random.default_rng(0))
    dataset = annotated_dataset(traces, planted, tokenizer=tokenizer)
    for trace, row in zip(traces, dataset, strict=True):
        assert strip_latents(row["text"]) == trace.task.canonical_program == row["prompt"] + "".join(row["lines"])
        ids = tokenizer.encode(row["text"], add_special_tokens=False)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == row["text"]
        marks = [token for token in tokenizer.convert_ids_to_tokens(ids) if token.startswith("<|z")]
        assert marks == [f"<|z{segment['latent']}|>" for segment in row["segments"]]


def test_what_others_read(tmp_path: Path) -> None:
    """The files are plain JSON lines and Parquet, for `datasets` and pandas alike."""
    from datasets import load_dataset

    for suffix, kind in [("jsonl", "json"), ("parquet", "parquet")]:
        path = tmp_path / f"traces.{suffix}"
        save_annotated(annotated_dataset(TRACES, INFERRED), INFERRED.names, path)
        read = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert read["text"] == [row["text"] for row in annotated_dataset(TRACES, INFERRED)]


def test_what_makes_no_data_set() -> None:
    tokenizer = train_tokenizer(["n += 1\n"], vocab_size=300)
    add_latents(None, tokenizer, 2)
    with pytest.raises(ConfigError, match="use 3 latents, the tokenizer knows 2"):
        annotated_dataset(TRACES, INFERRED, tokenizer=tokenizer)
    with pytest.raises(DataError, match="2 paths for 1 traces"):
        annotated_dataset(TRACES[:1], INFERRED)
    with pytest.raises(DataError, match="trace 'mine/1' has 1 lines, its path 3"):
        annotated_dataset(TRACES[::-1], INFERRED)
    with pytest.raises(DataError, match="trace 'mine/0' is under a latent outside 0 to 1"):
        annotated_dataset(TRACES, Annotations(INFERRED.paths, ((), ())))
    with pytest.raises(DataError, match="trace 'mine/1' has a gain that is not finite"):
        annotated_dataset(TRACES, Annotations(INFERRED.paths, INFERRED.names, gains=((0.0,) * 3, (float("nan"),))))


def test_an_unknown_suffix_and_no_rows(tmp_path: Path) -> None:
    dataset = annotated_dataset(TRACES, INFERRED)
    with pytest.raises(ConfigError, match=r"traces\.csv: annotated traces are saved as \.jsonl or \.parquet"):
        save_annotated(dataset, INFERRED.names, tmp_path / "traces.csv")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no such file"):
        load_annotated(tmp_path / "traces.jsonl")
    save_annotated(annotated_dataset([], Annotations((), ())), (), tmp_path / "traces.jsonl")
    with pytest.raises(DataError, match="holds no traces"):
        load_annotated(tmp_path / "traces.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lines": None}, "field 'lines' is missing"),
        ({"lines": []}, "field 'latents': has 3 entries for 0 lines"),
        ({"lines": [], "latents": [], "switches": []}, "field 'lines': is empty"),
        ({"lines": ["a", 1, "b"]}, "field 'lines': item 1 must be a string, got int"),
        ({"latents": [2, 2]}, "field 'latents': has 2 entries for 3 lines"),
        ({"latents": [2, True, 0]}, "field 'latents': item 1 must be an integer, got bool"),
        ({"latents": [2, 2, -1]}, "field 'latents': holds -1"),
        ({"latents": [2, 1, 0]}, "field 'switches': line 1 goes from latent 2 to 1 without one"),
        ({"switches": [1, 0, 1]}, "field 'switches': item 0 must be true or false, got int"),
        ({"switches": [False, True, True]}, "field 'switches': starts with false"),
        ({"segments": [{"latent": 2, "start": 0, "stop": 3}]}, "field 'segments': are not those"),
        ({"segments": [3]}, "field 'segments': item 0 must be an object, got int"),
        ({"gains": [0.0, 1.0]}, "field 'gains': has 2 entries for 3 lines"),
        ({"gains": [0.0, 1.0, "2"]}, "field 'gains': item 2 must be a number, got str"),
        ({"gains": [0.0, 1.0, float("inf")]}, "field 'gains': must be finite"),
        ({"text": 3}, "field 'text': must be a string, got int"),
    ],
)
def test_a_damaged_row_is_told(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    good, other = annotated_dataset(TRACES, INFERRED).to_list()
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (other, good | change)))
    with pytest.raises(DataError) as error:
        load_annotated(file)
    assert f"{file}, line 2: {message}" in str(error.value)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    for suffix in FORMATS:
        file = tmp_path / f"traces.{suffix}"
        save_annotated(annotated_dataset(TRACES, INFERRED), INFERRED.names, file)
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"{file}"):
            load_annotated(file)
        file.write_bytes(content)
        for names, message in [
            ("{", "not JSON"),
            ("[]", "must be a JSON object, got list"),
            ("{}", "field 'names' is missing"),
            ('{"names": [[], "up"]}', "item 1 must be a list of strings"),
            ('{"names": [[]]}', "uses latent 2, but"),
        ]:
            names_file(file).write_text(names)
            with pytest.raises(DataError, match=message):
                load_annotated(file)
