"""Annotated traces survive both file formats, and a damaged file is told by file, line and field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.dataset import (
    AnnotatedTraces,
    names_file,
    read_annotated,
    save_annotated,
)
from ra3gym.abstractions.latents.document import DocumentWriter
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.errors import ConfigError, DataError
from ra3gym.lm import strip_latents
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


@pytest.fixture(scope="module")
def writer(tokenizer: Any) -> DocumentWriter:
    return DocumentWriter(tokenizer)


def written(writer: DocumentWriter, traces: Sequence[ExpertTrace], annotations: Annotations) -> AnnotatedTraces:
    writer.check(traces, annotations)
    documents = tuple(writer.write(trace, annotations, index) for index, trace in enumerate(traces))
    return AnnotatedTraces(documents, annotations.names, annotations.comments)


def test_the_rows_by_hand(writer: DocumentWriter) -> None:
    row, other = written(writer, TRACES, INFERRED).dataset()

    def count(text: str) -> int:
        return len(writer.tokenizer.encode(text, add_special_tokens=False))

    prompt, one, last = count("# up twice\ndef f(n):\n"), count("    n += 1\n"), count("    return n\n")
    ids = row.pop("input_ids")
    assert row == {
        "task_id": "mine/0",
        "prompt": "# up twice\ndef f(n):\n",
        "text": "# up twice\ndef f(n):\n<|z2|>    n += 1\n    n += 1\n<|z0|>    return n\n",
        "lines": ["    n += 1\n", "    n += 1\n", "    return n\n"],
        "loss_mask": [False] + [True] * (len(ids) - 1),
        "prompt_span": {"start": 0, "stop": prompt},
        "latent_spans": [
            {"start": prompt, "stop": prompt + 1},
            {"start": prompt + 1 + 2 * one, "stop": prompt + 2 + 2 * one},
        ],
        "line_spans": [
            {"start": prompt + 1, "stop": prompt + 1 + one},
            {"start": prompt + 1 + one, "stop": prompt + 1 + 2 * one},
            {"start": prompt + 2 + 2 * one, "stop": prompt + 2 + 2 * one + last},
        ],
        "latents": [2, 2, 0],
        "switches": [True, False, True],
        "segments": [{"latent": 2, "start": 0, "stop": 2}, {"latent": 0, "start": 2, "stop": 3}],
        "gains": [0.25, -1.5, 0.0],
    }
    assert writer.tokenizer.decode(ids, skip_special_tokens=False) == row["text"] + "<|endoftext|>"
    assert other["segments"] == [{"latent": 0, "start": 0, "stop": 1}]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("gains", [True, False])
def test_both_formats_round_trip(suffix: str, gains: bool, writer: DocumentWriter, tmp_path: Path) -> None:
    inferred = INFERRED if gains else Annotations(INFERRED.paths, INFERRED.names)
    saved, path = written(writer, TRACES, inferred), tmp_path / "new" / f"traces.{suffix}"
    save_annotated(saved, path)
    assert read_annotated(path) == saved
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, names_file(path).name]

    shorter = written(writer, TRACES[:1], Annotations(inferred.paths[:1], inferred.names))
    save_annotated(shorter, path)
    assert read_annotated(path) == shorter
    names_file(path).unlink()
    assert read_annotated(path).names == ((), (), ())


@pytest.mark.parametrize("suffix", FORMATS)
def test_comments_and_rows_without_latents_round_trip(suffix: str, writer: DocumentWriter, tmp_path: Path) -> None:
    comments = replace(INFERRED, comments=("", "# é", "# count"), gains=None)
    for saved in (written(writer, TRACES, comments), AnnotatedTraces((writer.write(TRACES[0]),))):
        save_annotated(saved, tmp_path / f"traces.{suffix}")
        assert read_annotated(tmp_path / f"traces.{suffix}") == saved


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
segments = st.lists(st.tuples(st.integers(0, 4), st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=texts, parts=segments, suffix=st.sampled_from(FORMATS))
def test_any_text_round_trips(
    prompt: str, parts: list[tuple[int, list[str]]], suffix: str, writer: DocumentWriter, tmp_path: Path
) -> None:
    path = LatentPath(
        tuple(z for z, lines in parts for _ in lines),
        tuple(n == 0 for _, lines in parts for n in range(len(lines))),
    )
    trace = make_trace(prompt, *(line for _, lines in parts for line in lines))
    saved = written(writer, [trace], Annotations((path,), ((prompt,),) * 5))
    save_annotated(saved, tmp_path / f"traces.{suffix}")
    read = read_annotated(tmp_path / f"traces.{suffix}")
    assert read == saved
    (row,) = read.documents
    assert read.names == ((prompt,),) * 5
    assert (row.path, row.lines, row.prompt, row.gains) == (path, trace.steps, prompt, None)
    assert [z for z, _, _ in row.segments] == [z for z, _ in parts]


def test_the_text_without_latents_is_the_program(traces: list[ExpertTrace], writer: DocumentWriter) -> None:
    planted = OracleEStep().infer(traces, np.random.default_rng(0))
    tokenizer = writer.tokenizer
    for trace, row in zip(traces, written(writer, traces, planted).dataset(), strict=True):
        assert strip_latents(row["text"]) == trace.task.canonical_program == row["prompt"] + "".join(row["lines"])
        ids = tokenizer.encode(row["text"], add_special_tokens=False)
        assert [*ids, tokenizer.eos_token_id] == row["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == row["text"]
        marks = [token for token in tokenizer.convert_ids_to_tokens(ids) if token.startswith("<|z")]
        assert marks == [f"<|z{segment['latent']}|>" for segment in row["segments"]]


def test_what_others_read(writer: DocumentWriter, tmp_path: Path) -> None:
    """The files are plain JSON lines and Parquet, for `datasets` and pandas alike."""
    from datasets import load_dataset

    saved = written(writer, TRACES, INFERRED)
    for suffix, kind in [("jsonl", "json"), ("parquet", "parquet")]:
        path = tmp_path / f"traces.{suffix}"
        save_annotated(saved, path)
        read = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert read["text"] == [document.text for document in saved.documents]
        assert read["input_ids"] == [list(document.ids) for document in saved.documents]


def test_an_unknown_suffix_and_no_rows(writer: DocumentWriter, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"traces\.csv: annotated traces are saved as \.jsonl or \.parquet"):
        save_annotated(written(writer, TRACES, INFERRED), tmp_path / "traces.csv")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no such file"):
        read_annotated(tmp_path / "traces.jsonl")
    save_annotated(AnnotatedTraces(()), tmp_path / "traces.jsonl")
    with pytest.raises(DataError, match="holds no traces"):
        read_annotated(tmp_path / "traces.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lines": None}, "field 'lines' is missing"),
        ({"lines": []}, "field 'lines': is empty"),
        ({"lines": ["a", 1, "b"]}, "field 'lines': item 1 must be a string, got int"),
        ({"latents": [2, 2]}, "field 'latents': has 2 entries for 3 lines"),
        ({"latents": [2, True, 0]}, "field 'latents': item 1 must be an integer, got bool"),
        ({"latents": [2, 2, -1]}, "field 'latents': holds -1"),
        ({"latents": [2, 1, 0]}, "field 'switches': line 1 goes from latent 2 to 1 without a switch"),
        ({"switches": [1, 0, 1]}, "field 'switches': item 0 must be true or false, got int"),
        ({"switches": [False, True, True]}, "field 'switches': starts with false"),
        ({"segments": [{"latent": 2, "start": 0, "stop": 3}]}, "field 'segments': is not that of"),
        ({"segments": [3]}, "field 'segments': is not that of"),
        ({"loss_mask": [True]}, "field 'loss_mask': is not that of"),
        ({"input_ids": [1, "2"]}, "field 'input_ids': item 1 must be an integer, got str"),
        ({"input_ids": [1, 2]}, "field 'line_spans': the spans end at token"),
        ({"prompt_span": {"start": 1, "stop": 2}}, "field 'line_spans': the span 1 to 2 does not continue at token 0"),
        ({"prompt_span": None}, "field 'prompt_span': must be integers start and stop, got None"),
        ({"latent_spans": []}, "field 'line_spans': 0 spans of latents for 2 segments"),
        ({"gains": [0.0, 1.0]}, "field 'gains': has 2 entries for 3 lines"),
        ({"gains": [0.0, 1.0, "2"]}, "field 'gains': item 2 must be a number, got str"),
        ({"gains": [0.0, 1.0, float("inf")]}, "field 'gains': must be finite"),
        ({"text": 3}, "field 'text': must be a string, got int"),
    ],
)
def test_a_damaged_row_is_told(change: dict[str, Any], message: str, writer: DocumentWriter, tmp_path: Path) -> None:
    good, other = written(writer, TRACES, INFERRED).dataset().to_list()
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (other, good | change)))
    with pytest.raises(DataError) as error:
        read_annotated(file)
    assert f"{file}, line 2: {message}" in str(error.value)


def test_damaged_files_are_told(writer: DocumentWriter, tmp_path: Path) -> None:
    for suffix in FORMATS:
        file = tmp_path / f"traces.{suffix}"
        save_annotated(written(writer, TRACES, INFERRED), file)
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"{file}"):
            read_annotated(file)
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
                read_annotated(file)
