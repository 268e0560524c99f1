"""Training batches: padded rows of similar length, or several traces in one row that do not see each other.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ra3gym.errors import ConfigError

IGNORE = -100
"""The target where nothing is predicted, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class TokenBatch:
    """Rows of one or more traces each. No trace attends to another, and none predicts another's tokens.

    Attributes:
        ids_BT: int64 token ids; 0 at padding.
        position_BT: int64, the position in the trace, from 0. Where rows hold several traces, transformers infers from
            the restarts that they must not attend to each other. Where each row holds one trace, positions continue
            through the padding: then no mask is needed, which is faster.
        segment_BT: int64, the number of the trace in its row; -1 at padding.
        target_BT: int64, the next token of the same trace; `IGNORE` at its last token and at padding.
    """

    ids_BT: Tensor
    position_BT: Tensor
    segment_BT: Tensor
    target_BT: Tensor

    def __getitem__(self, rows: Tensor | slice) -> TokenBatch:
        """Return these rows as a batch."""
        return TokenBatch(self.ids_BT[rows], self.position_BT[rows], self.segment_BT[rows], self.target_BT[rows])

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.segment_BT >= 0).sum())


def pack(sequences: Sequence[Sequence[int]], block_length: int) -> TokenBatch:
    """Pack all `sequences` into rows of `block_length` tokens, by first-fit-decreasing.

    For models of fixed row length. `batches` is about twice as fast for traces much shorter than a row, since attention
    then covers one trace rather than the row. The model must take its attention mask from transformers' own
    `create_causal_mask`, as all current decoder-only attention models do.

    Raises:
        ConfigError: a sequence is longer than a row.
    """
    rows: list[list[Sequence[int]]] = []
    room: list[int] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        if len(sequence) > block_length:
            raise ConfigError(
                f"a trace of {len(sequence)} tokens does not fit block_length={block_length}: give at least as many"
            )
        row = next((row for row, free in enumerate(room) if free >= len(sequence)), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(block_length)
        rows[row].append(sequence)
        room[row] -= len(sequence)
    return _fill(rows, block_length)


def batches(
    sequences: Sequence[Sequence[int]], tokens_per_batch: int, generator: torch.Generator
) -> Iterator[TokenBatch]:
    """Yield `sequences` once, in random order, as right-padded batches of about `tokens_per_batch` real tokens.

    Sequences of similar length share a batch, so that there is little padding. Which sequences share one, and the order
    of the batches, is drawn anew from `generator` in each pass.

    Raises:
        ConfigError: `tokens_per_batch` is below the longest sequence.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    if len(sequences) == 0:
        raise ConfigError("there are no sequences to make batches of: give at least one")
    longest = int(lengths.max())
    if longest > tokens_per_batch:
        raise ConfigError(
            f"tokens_per_batch={tokens_per_batch} must hold the longest of the {len(sequences)} sequences, which has "
            f"{longest} tokens: give at least {longest}, or leave out the {int((lengths > tokens_per_batch).sum())} "
            "that do not fit"
        )
    shuffled = torch.randperm(len(sequences), generator=generator)
    order = shuffled[lengths[shuffled].argsort(stable=True)]
    batch_of = (lengths[order].cumsum(0) - 1) // tokens_per_batch
    members = [part.tolist() for part in torch.split(order, torch.bincount(batch_of).tolist())]
    for index in torch.randperm(len(members), generator=generator).tolist():
        chosen = [sequences[i] for i in members[index]]
        yield _fill([[sequence] for sequence in chosen], max(map(len, chosen)))


def _fill(rows: Sequence[Sequence[Sequence[int]]], length: int) -> TokenBatch:
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    position, segment, target = torch.zeros_like(ids), torch.full_like(ids, -1), torch.full_like(ids, IGNORE)
    for row, sequences in enumerate(rows):
        start = 0
        for number, sequence in enumerate(sequences):
            end = start + len(sequence)
            ids[row, start:end] = torch.tensor(sequence)
            position[row, start:end] = torch.arange(len(sequence))
            segment[row, start:end] = number
            target[row, start : end - 1] = ids[row, start + 1 : end]
            start = end
    if all(len(sequences) == 1 for sequences in rows):
        position = torch.arange(length).repeat(len(rows), 1)
    return TokenBatch(ids, position, segment, target)
