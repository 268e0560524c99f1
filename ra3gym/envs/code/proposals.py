"""Comments that a model proposes: sampled token by token after each program, in one batch.

Shape letters: see CONTRIBUTING.md (P programs, G proposals of each, R = P * G comments, B comments that are not
finished yet, A = G + 1 actions, T tokens of the longest comment, V vocabulary).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ra3gym.envs.code.comment_tokens import CommentTokens
from ra3gym.lm import LoadedModel
from ra3gym.lm.fast.batch_stream import draw
from ra3gym.lm.sampling import read_prompts
from ra3gym.lm.tokenizer import decode_completion

NO_COMMENT = 0
"""The action that writes no comment; action i writes proposal i - 1."""


@dataclass(frozen=True)
class Choices:
    """The actions of a program at one decision: no comment, or one of G proposals.

    Attributes:
        texts: the proposals, each from its `#` on; empty texts where no comment can stand.
        comments: their tokens, the line break's included.
        logprobs_A: float32, nats: of a line of code, and of each proposal.
        legal_A: bool; repeated texts are not legal.
    """

    texts: tuple[str, ...]
    comments: tuple[tuple[int, ...], ...]
    logprobs_A: npt.NDArray[np.float32]
    legal_A: npt.NDArray[np.bool_]


def only_code(num_proposals: int) -> Choices:
    """Return the choices where no comment can stand."""
    legal_A = np.arange(num_proposals + 1) == NO_COMMENT
    logprobs_A = np.where(legal_A, 0.0, -np.inf).astype(np.float32)
    return Choices(("",) * num_proposals, ((),) * num_proposals, logprobs_A, legal_A)


@torch.inference_mode()
def propose(
    loaded: LoadedModel,
    tokens: CommentTokens,
    prefixes: Sequence[list[int]],
    room_P: Sequence[int],
    uniform_PGT: npt.NDArray[np.float64],
    temperature: float,
) -> list[Choices]:
    """Sample G comments after each program.

    The first token of a comment is drawn from `tokens.proposal_first_V`, the others from `proposal_next_V`, and the
    last that there is room for from `proposal_last_V`.

    Args:
        loaded: the model.
        tokens: the masks of its vocabulary, on its device.
        prefixes: token ids of each program so far.
        room_P: most tokens of a comment, its line break included, at least 2.
        uniform_PGT: in [0, 1), one number for each token. All are given, whether they are used or not, so that the
            proposals of one program do not depend on those of others.
        temperature: divides the logits that tokens are drawn from, not those of the log-probabilities.
    """
    G = uniform_PGT.shape[1]
    room_R, uniform_RT = np.repeat(room_P, G), uniform_PGT.reshape(-1, uniform_PGT.shape[2])
    decoder = read_prompts(loaded.model, prefixes, G, int(room_R.max()))
    # The distribution of a line's first token, given that the line is not blank.
    first_RV = decoder.logits_BV.double().masked_fill(~tokens.first_V, -torch.inf).log_softmax(-1)
    code_R = first_RV.masked_fill(~tokens.code_first_V, -torch.inf).logsumexp(-1).cpu().numpy()
    comments: list[list[int]] = [[] for _ in room_R]
    logp_R = np.zeros(len(room_R))
    open_B = np.arange(len(room_R))
    for t in range(int(room_R.max())):
        if t == 0:
            allowed_BV = tokens.proposal_first_V[None]
        else:
            is_last_B1 = torch.from_numpy(room_R[open_B] == t + 1)[:, None].to(tokens.proposal_last_V.device)
            allowed_BV = torch.where(is_last_B1, tokens.proposal_last_V, tokens.proposal_next_V)
        logits_BV = decoder.logits_BV.double().masked_fill(~allowed_BV, -torch.inf)
        drawn = draw(logits_BV, uniform_RT[open_B, t].tolist(), temperature=temperature)
        token_B1 = torch.tensor(drawn, device=logits_BV.device)[:, None]
        scored_BV = first_RV if t == 0 else logits_BV.log_softmax(-1)
        logp_R[open_B] += scored_BV.gather(1, token_B1)[:, 0].cpu().numpy()
        for r, token in zip(open_B.tolist(), drawn, strict=True):
            comments[r].append(token)
        unfinished = torch.nonzero(~tokens.proposal_last_V[token_B1[:, 0]])[:, 0]
        if not len(unfinished):
            break
        if len(unfinished) < len(open_B):
            decoder.keep(unfinished)
            open_B = open_B[unfinished.cpu().numpy()]
        decoder.read(token_B1[unfinished, 0])
    choices = []
    for p, prefix in enumerate(prefixes):
        own = slice(p * G, p * G + G)
        choices.append(_choices(loaded, prefix, comments[own], float(code_R[p * G]), logp_R[own]))
    return choices


def _choices(
    loaded: LoadedModel, prefix: list[int], comments: list[list[int]], code_logp: float, logp_G: npt.NDArray[np.float64]
) -> Choices:
    decoded = [decode_completion(loaded.tokenizer, prefix[-1:], comment) for comment in comments]
    texts = tuple(text.strip(" \t\f").partition("\n")[0].rstrip() for text in decoded)
    is_new = [text not in texts[:i] for i, text in enumerate(texts)]
    logprobs_A = np.array([code_logp, *logp_G], dtype=np.float32)
    return Choices(texts, tuple(map(tuple, comments)), logprobs_A, np.array([True, *is_new]))
