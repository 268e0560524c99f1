"""RA3 in one file: infer latent actions from expert code, train a model to write them, reward programs that pass tests.

The method of "Learning to Reason as Action Abstractions with Scalable Mid-Training RL" (arXiv 2509.25810), from top to
bottom: arguments, model, E-step, M-step, GRPO, evaluation. ra3gym lends only tasks, expert traces and the judge.

    python examples/ra3_in_one_file.py                   # about two minutes on two cores
    python examples/ra3_in_one_file.py --tokens 1200000  # every field of `Args` is an option

RA3 maximizes a temporal lower bound of the log-likelihood of expert code. With a latent z_t for each line x_t,

    ELBO = E_q sum_t [ log pi(x_t | x_<t, z_t) - KL(q(z_t | .) || p(z_t | z_{t-1})) ],

where the prior p keeps the previous latent (`<act>`) or draws a fresh one (`<think>`). The E-step finds the best q, the
M-step trains pi on the traces with their latents. Here a latent is one of K special tokens (a codebook), so q is exact.
Next-token prediction (NTP) on the same traces, for as many tokens, is the control.

Shape letters: M traces, N lines of all traces one after the other, U distinct lines, Y distinct pairs of neighboring
lines, K latents, W words of prompts, P prompts, G programs of a prompt, R rows (P x G), T tokens, V vocabulary.
"""

from __future__ import annotations

import builtins
import copy
import io
import itertools
import keyword
import time
import tokenize
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from scipy.cluster.vq import kmeans2, vq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ra3gym.tasks import CodeTask, ExpertTrace
from ra3gym.tasks.idioms import IdiomsDomain
from ra3gym.verify import Judge, Limits


@dataclass(frozen=True)
class Args:
    """The knobs, a small part of those of `ra3gym run`."""

    seed: int = 0
    length: int = 4  # idioms in a program
    documented: float = 0.3  # share of the expert traces whose prompt names the idioms, one word each
    num_traces: int = 4000
    num_base_traces: int = 1000
    num_tasks: int = 128  # held-out tasks for RLVR, and as many others for evaluation
    num_latents: int = 48  # K, more than the intents one expects: rare ones need a place too
    restarts: int = 8  # EM runs from different initializations
    em_iterations: int = 15
    backoff: float = 20.0  # pseudo-counts of the less specific emission
    hidden: int = 64
    layers: int = 2
    vocab_size: int = 640
    base_tokens: int = 100_000  # pre-training on short undocumented programs, which mid-training starts from
    tokens: int = 500_000  # mid-training, the same for RA3 and NTP
    tokens_per_batch: int = 512
    learning_rate: float = 1e-2
    rlvr_steps: int = 20
    tasks_per_step: int = 16
    group_size: int = 8
    rlvr_learning_rate: float = 1e-3
    max_new_tokens: int = 160
    samples: int = 4  # programs of each task in evaluation


# --- The model: a byte-level BPE, one special token for each latent, a tiny Llama -------------------------------------

END, PAD = "<|endoftext|>", "<|pad|>"
PIECES = r"\n|(?<![^\n])[ \t]+| ?[^\W\d]\w*| ?\d| ?[^\s\w]+|[^\S\n]"  # no token spans a line break


class LM(NamedTuple):
    """A language model and its tokenizer."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast


def make_lm(programs: Sequence[str], args: Args) -> LM:
    """A tokenizer trained on programs, with the latents `<|z0|>`, `<|z1|>`, ..., and a random Llama."""
    bpe = Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), to_bytes])
    bpe.decoder = decoders.ByteLevel()
    options = {"special_tokens": [END, PAD], "initial_alphabet": to_bytes.alphabet(), "show_progress": False}
    bpe.train_from_iterator(programs, trainers.BpeTrainer(vocab_size=args.vocab_size, **options))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD)
    tokenizer.add_tokens([f"<|z{k}|>" for k in range(args.num_latents)], special_tokens=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=-(-8 * args.hidden // 48) * 16,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.08,  # the usual 0.02 is made for widths in the thousands
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(args.seed)
    return LM(LlamaForCausalLM(config), tokenizer)


def encode(lm: LM, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text."""
    return [lm.tokenizer.encode(text, add_special_tokens=False) for text in texts]


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """int64 (rows, longest), filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


# --- E-step, part 1: traces as arrays ---------------------------------------------------------------------------------

START = 0  # the line before a first line
BACKGROUND, NO_PROMPT = 0, 1  # word 0 belongs to every documented prompt, word 1 stands for a missing prompt


class Types(NamedTuple):
    """Numbers for distinct lines, pairs of neighboring lines, and words; filled while traces are encoded."""

    lines: dict[str, int]
    pairs: dict[tuple[int, int], int]
    words: dict[str, int]


def line_type(line: str) -> str:
    """The line with its own names numbered, so that names do not matter: `"    total += v"` -> `"4 _0 += _1"`."""
    names: dict[str, str] = {}
    parts = [str(len(line) - len(line.lstrip()))]
    for token in tokenize.generate_tokens(io.StringIO(line.strip()).readline):
        known = keyword.iskeyword(token.string) or hasattr(builtins, token.string) or parts[-1] == "."
        is_own = token.type == tokenize.NAME and not known
        parts.append(names.setdefault(token.string, f"_{len(names)}") if is_own else token.string)
    return " ".join(parts)


def prompt_words(prompt: str) -> list[str]:
    """The words of a prompt's comment lines."""
    return [word for line in prompt.splitlines() if line.startswith("#") for word in line[1:].split()]


class Corpus(NamedTuple):
    """Encoded traces; the lines of trace m are `offsets[m] : offsets[m + 1]`."""

    line_N: np.ndarray
    previous_N: np.ndarray
    pair_N: np.ndarray
    trace_N: np.ndarray
    offsets: np.ndarray
    share_MW: np.ndarray  # each word's share of the prompt


def encode_traces(traces: Sequence[ExpertTrace], types: Types) -> Corpus:
    """Encode traces; new lines, pairs and words get the next free number in `types`."""
    lines = [[types.lines.setdefault(line_type(step), len(types.lines)) for step in trace.steps] for trace in traces]
    pairs = [pair for trace in lines for pair in zip([START, *trace], trace, strict=False)]
    prompts = []
    for trace in traces:
        words = [types.words.setdefault(word, len(types.words)) for word in prompt_words(trace.prompt)]
        prompts.append([BACKGROUND, *words] if words else [NO_PROMPT])
    lengths = [len(trace) for trace in lines]
    return Corpus(
        line_N=np.array([line for _, line in pairs]),
        previous_N=np.array([previous for previous, _ in pairs]),
        pair_N=np.array([types.pairs.setdefault(pair, len(types.pairs)) for pair in pairs]),
        trace_N=np.repeat(np.arange(len(lines)), lengths),
        offsets=np.cumsum([0, *lengths]),
        share_MW=np.stack([np.bincount(words, minlength=len(types.words)) / len(words) for words in prompts]),
    )


# --- E-step, part 2: exact inference under the sticky prior -----------------------------------------------------------


class Codebook(NamedTuple):
    """p(lines, latents | prompt), as probabilities."""

    emission_YK: np.ndarray  # p(x_t | x_{t-1}, z_t), by pair
    keep_U: np.ndarray  # p(keep | x_{t-1}): the sticky prior's alpha, learned for each line before; 0 at the start
    word_WK: np.ndarray  # p(fresh latent | word); a prompt is a uniform mixture over its words
    evidence: float  # log p(lines) under the parameters of the last EM iteration, nats per line

    def chain(self, corpus: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
        """`emission_NK`, `keep_N1`, `fresh_NK`, and the lines in first place of their trace, in second, ..."""
        starts, lengths = corpus.offsets[:-1], np.diff(corpus.offsets)
        places = [starts[lengths > t] + t for t in range(lengths.max())]
        fresh_NK = (corpus.share_MW @ self.word_WK)[corpus.trace_N]
        return self.emission_YK[corpus.pair_N], self.keep_U[corpus.previous_N, None], fresh_NK, places


def forward_backward(corpus: Corpus, codebook: Codebook) -> tuple[np.ndarray, np.ndarray, float]:
    """The exact q, for all traces at once: `p(z_t = k | trace)`, `p(z_t = k, fresh | trace)`, and log evidence.

    Forward, with a_t the filtered distribution and c_t its normalizer, log p(lines) = sum_t log c_t and
        a_t(k) = p(x_t | k) [keep_t a_{t-1}(k) + (1 - keep_t) fresh(k)] / c_t.
    A switch forgets where it came from: a line costs O(K), not O(K^2). Backward, with q_t(k) = p(x_t | k) b_t(k) / c_t,
        b_{t-1}(k) = keep_t q_t(k) + (1 - keep_t) sum_j fresh(j) q_t(j).
    """
    emission_NK, keep_N1, fresh_NK, places = codebook.chain(corpus)
    filtered_NK, beta_NK, drawn_NK = np.zeros_like(emission_NK), np.ones_like(emission_NK), np.empty_like(emission_NK)
    scale_N1 = np.empty_like(keep_N1)
    for n in places:
        joint = emission_NK[n] * (keep_N1[n] * filtered_NK[n - 1] + (1.0 - keep_N1[n]) * fresh_NK[n])
        scale_N1[n] = joint.sum(1, keepdims=True)
        filtered_NK[n] = joint / scale_N1[n]
    for t in range(len(places) - 1, -1, -1):
        n = places[t]
        ratio = emission_NK[n] * beta_NK[n] / scale_N1[n]
        drawn_NK[n] = (1.0 - keep_N1[n]) * fresh_NK[n] * ratio
        if t > 0:
            beta_NK[n - 1] = keep_N1[n] * ratio + drawn_NK[n].sum(1, keepdims=True)
    return filtered_NK * beta_NK, drawn_NK, float(np.log(scale_N1).sum())


def viterbi(corpus: Corpus, codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
    """The most probable path of each trace: `(latent_N, switch_N)`."""
    emission_NK, keep_N1, fresh_NK, places = codebook.chain(corpus)
    with np.errstate(divide="ignore"):  # a first line keeps nothing
        log_keep_N1, log_switch_N1 = np.log(keep_N1), np.log(1.0 - keep_N1)
    score_NK, switched_NK = np.zeros_like(emission_NK), np.zeros(emission_NK.shape, dtype=bool)
    for t, n in enumerate(places):
        before = score_NK[n - 1] if t > 0 else 0.0 * score_NK[n]
        kept = before + log_keep_N1[n]
        drawn = before.max(1, keepdims=True) + log_switch_N1[n] + np.log(fresh_NK[n])
        switched_NK[n] = drawn > kept
        score_NK[n] = np.maximum(kept, drawn) + np.log(emission_NK[n])
    latent_N = score_NK.argmax(1)  # holds for last lines, and for lines before a switch
    for n in reversed(places[1:]):
        latent_N[n - 1] = np.where(switched_NK[n, latent_N[n]], latent_N[n - 1], latent_N[n])
    return latent_N, switched_NK[np.arange(len(latent_N)), latent_N]


# --- E-step, part 3: learn the codebook by EM, annotate the traces ----------------------------------------------------


def emissions(types: Types, counts_YK: np.ndarray, backoff: float) -> np.ndarray:
    """p(line | line before, latent) from expected counts, backed off to p(line | latent), then to p(line)."""
    previous_Y, line_Y = np.array(list(types.pairs)).T
    line_UK, previous_UK = np.zeros((2, len(types.lines), counts_YK.shape[1]))
    np.add.at(line_UK, line_Y, counts_YK)
    np.add.at(previous_UK, previous_Y, counts_YK)
    frequency_U1 = line_UK.sum(1, keepdims=True) / line_UK.sum()
    given_latent_UK = (line_UK + backoff * frequency_U1) / (line_UK.sum(0) + backoff)
    return (counts_YK + backoff * given_latent_UK[line_Y]) / (previous_UK[previous_Y] + backoff)


def initial_counts(corpus: Corpus, types: Types, num_latents: int, rng: np.random.Generator) -> np.ndarray:
    """Emission counts from k-means: EM needs a start that separates intents, and prompts name intents.

    The features of a line are its positive pointwise mutual information with each word, max(0, log p(line, word) /
    (p(line) p(word))), and those of the three lines after it, fading: an intent often starts with an empty `out = []`.
    """
    count_MW = np.where(np.arange(len(types.words)) > NO_PROMPT, corpus.share_MW / corpus.share_MW[:, [BACKGROUND]], 0)
    joint_UW = np.zeros((len(types.lines), len(types.words)))
    np.add.at(joint_UW, corpus.line_N, count_MW[corpus.trace_N])
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi_UW = np.log(joint_UW / (joint_UW.sum(1, keepdims=True) * joint_UW.sum(0) / joint_UW.sum()))
    pmi_UW = np.nan_to_num(np.maximum(pmi_UW, 0.0), nan=0.0)
    features_NW = pmi_UW[corpus.line_N]
    for ahead in (1, 2, 3):
        same_trace = corpus.trace_N[ahead:] == corpus.trace_N[:-ahead]
        features_NW[:-ahead][same_trace] += 0.7**ahead * pmi_UW[corpus.line_N[ahead:][same_trace]]
    features_NW /= np.linalg.norm(features_NW, axis=1, keepdims=True) + 1e-9
    # At most 40 lines of each type are clustered, so that rare intents get clusters too.
    order = rng.permutation(len(corpus.line_N))
    order = order[np.argsort(corpus.line_N[order], kind="stable")]
    rank = np.arange(len(order)) - np.searchsorted(corpus.line_N[order], corpus.line_N[order])
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        centers_KW, _ = kmeans2(features_NW[order[rank < 40]], num_latents, minit="++", iter=20, rng=rng)
    counts_YK = np.full((len(types.pairs), num_latents), 1e-2)
    np.add.at(counts_YK, (corpus.pair_N, vq(features_NW, centers_KW)[0]), 1.0)
    return counts_YK


def fit_codebook(corpus: Corpus, types: Types, args: Args, rng: np.random.Generator) -> Codebook:
    """EM: exact posteriors, then the parameters that maximize the expected log-likelihood under them."""
    emission_YK = emissions(types, initial_counts(corpus, types, args.num_latents, rng), args.backoff)
    keep_U = np.where(np.arange(len(types.lines)) == START, 0.0, 0.5)
    codebook = Codebook(emission_YK, keep_U, rng.dirichlet(np.full(args.num_latents, 10.0), len(types.words)), -np.inf)
    for _ in range(args.em_iterations):
        marginal_NK, drawn_NK, log_evidence = forward_backward(corpus, codebook)
        counts_YK = np.full_like(emission_YK, 1e-9)
        np.add.at(counts_YK, corpus.pair_N, marginal_NK)
        # IBM model 1: a fresh latent is credited to the words of the prompt in proportion to their shares of it.
        drawn_MK = np.add.reduceat(drawn_NK, corpus.offsets[:-1])
        credit_WK = codebook.word_WK * (corpus.share_MW.T @ (drawn_MK / (corpus.share_MW @ codebook.word_WK)))
        word_WK = (1e-2 + credit_WK) / (1e-2 + credit_WK).sum(1, keepdims=True)
        kept_U = np.bincount(corpus.previous_N, 1.0 - drawn_NK.sum(1), minlength=len(keep_U))
        keep_U = (kept_U + 0.5) / (np.bincount(corpus.previous_N, minlength=len(keep_U)) + 1.0)
        keep_U[START] = 0.0
        evidence = log_evidence / len(corpus.line_N)
        codebook = Codebook(emissions(types, counts_YK, args.backoff), keep_U, word_WK, evidence)
    return codebook


class Annotations(NamedTuple):
    """For each trace `(latent, whether a segment starts)` of each line; for each latent the words that call for it."""

    paths: list[list[tuple[int, bool]]]
    names: list[list[str]]
    evidence: float


def e_step(traces: Sequence[ExpertTrace], args: Args, rng: np.random.Generator) -> Annotations:
    """Fit the codebook on the documented traces, then annotate every trace with its most probable path.

    An undocumented trace teaches nothing about where an intent begins: a chain of lines explains it without a switch.
    """
    types = Types({"<start>": START}, {}, {"<background>": BACKGROUND, "<no prompt>": NO_PROMPT})
    corpus = encode_traces(traces, types)
    documented = encode_traces([trace for trace in traces if prompt_words(trace.prompt)], types)
    seeds = rng.integers(2**63, size=args.restarts)
    codebooks = [fit_codebook(documented, types, args, np.random.default_rng(seed)) for seed in seeds]
    best = max(codebooks, key=lambda codebook: codebook.evidence)
    path = list(zip(*(array.tolist() for array in viterbi(corpus, best)), strict=True))
    paths = [path[start:stop] for start, stop in itertools.pairwise(corpus.offsets)]
    names, words = [], list(types.words)
    for share_W in best.word_WK.T:
        calling = [w for w in np.argsort(-share_W, kind="stable") if share_W[w] >= max(0.15, share_W[BACKGROUND])]
        names.append([words[w] for w in calling if w > NO_PROMPT])
    return Annotations(paths, names, best.evidence)


# --- M-step: next-token prediction on annotated traces ----------------------------------------------------------------


def annotate(trace: ExpertTrace, path: list[tuple[int, bool]], names: list[list[str]], rng: np.random.Generator) -> str:
    """The trace with a latent at each switch; an undocumented one gets a prompt, a word for each segment."""
    prompt = trace.prompt
    words = [str(rng.choice(names[z])) for z, switch in path if switch and names[z] and not prompt_words(prompt)]
    head = f"# {' '.join(words)}\n" if words else ""
    marks = [f"<|z{z}|>" if switch else "" for z, switch in path]
    return head + prompt + "".join(mark + line for mark, line in zip(marks, trace.steps, strict=True))


def batches(documents: Sequence[list[int]], tokens_per_batch: int, generator: torch.Generator) -> list[list[list[int]]]:
    """One shuffled pass, cut into batches of documents of like length, so that little is padding."""
    lengths = torch.tensor([len(document) for document in documents])
    order = torch.randperm(len(documents), generator=generator)
    order = order[lengths[order].argsort(stable=True)]
    batch_of = (lengths[order].cumsum(0) - 1) // tokens_per_batch
    parts = [part.tolist() for part in torch.split(order, torch.bincount(batch_of).tolist())]
    return [[documents[i] for i in parts[b]] for b in torch.randperm(len(parts), generator=generator).tolist()]


def m_step(lm: LM, texts: Sequence[str], tokens: int, args: Args) -> list[float]:
    """Maximize log pi(x_t, z_t | before) over a budget of tokens; the loss of each batch comes back, nats per token."""
    documents = [[*ids, lm.tokenizer.eos_token_id] for ids in encode(lm, texts)]
    generator = torch.Generator().manual_seed(args.seed)
    embedding = lm.model.get_input_embeddings().weight  # the output embedding too
    matrices = [weight for weight in lm.model.parameters() if weight.ndim == 2 and weight is not embedding]
    others = [weight for weight in lm.model.parameters() if weight.ndim != 2 or weight is embedding]
    # Muon (orthogonalized momentum) on the matrices learns more per token than AdamW alone.
    muon = torch.optim.Muon(matrices, weight_decay=0.0)
    adamw = torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.95), fused=True)
    losses: list[float] = []
    seen = 0
    while seen < tokens:
        for batch in batches(documents, args.tokens_per_batch, generator):
            rise = min(1.0, (seen / tokens + 0.002) / 0.05)  # over 5% of the budget; then the rate falls to a tenth
            for optimizer in (muon, adamw):
                optimizer.param_groups[0]["lr"] = args.learning_rate * (rise * (1.0 - 0.9 * seen / tokens))
            target_RT = F.pad(padded(batch, -100)[:, 1:], (0, 1), value=-100)
            logits = lm.model(input_ids=padded(batch, 0), use_cache=False).logits[target_RT != -100]
            loss = F.cross_entropy(logits, target_RT[target_RT != -100], reduction="sum") / len(logits)
            lm.model.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
            muon.step()
            adamw.step()
            losses.append(loss.item())
            seen += len(logits)
            if seen >= tokens:
                break
    return losses


# --- RLVR: sample programs, run their unit tests, update by GRPO ------------------------------------------------------


def random_numbers(rows: int, args: Args, seed: int) -> torch.Tensor:
    """One number in [0, 1) for each token of `rows` completions."""
    uniform_RT = torch.rand(rows, args.max_new_tokens, generator=torch.Generator().manual_seed(seed))
    return uniform_RT.clamp(max=1 - 2.0**-23)


@torch.no_grad()
def sample(lm: LM, tasks: Sequence[CodeTask], uniform_RT: torch.Tensor) -> list[list[int]]:
    """R / P completions of each task's prompt as token ids, the end token included, drawn with these numbers."""
    pad, end = lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id
    prompts = encode(lm, [task.prompt for task in tasks])
    longest = max(map(len, prompts))
    rows = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts])
    ids = rows.repeat_interleave(len(uniform_RT) // len(tasks), 0)
    mask, cache = (ids != pad).long(), None
    position = (mask.cumsum(1) - 1).clamp(min=0)
    completions: list[list[int]] = [[] for _ in ids]
    active_R = torch.ones(len(ids), dtype=torch.bool)
    for uniform_R in uniform_RT.T:
        output = lm.model(ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
        cdf_RV = torch.softmax(output.logits[:, -1], dim=-1).cumsum(-1)
        drawn_R1 = torch.searchsorted(cdf_RV, (uniform_R * cdf_RV[:, -1])[:, None], right=True)
        ids = drawn_R1.clamp(max=cdf_RV.shape[1] - 1)
        for row in active_R.nonzero()[:, 0].tolist():
            completions[row].append(int(ids[row, 0]))
        active_R = active_R & (ids[:, 0] != end)
        if not bool(active_R.any()):
            break
        mask, cache = F.pad(mask, (0, 1), value=1), output.past_key_values
        position = mask.sum(1, keepdim=True) - 1
    return completions


def grade(lm: LM, judge: Judge, tasks: Sequence[CodeTask], completions: Sequence[list[int]]) -> torch.Tensor:
    """`reward_PG`: 1 for each program that passes all hidden tests, else 0. Latents are no part of a program."""
    texts = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]
    rows = [task for task in tasks for _ in range(len(texts) // len(tasks))]
    verdicts = judge.grade([(task, task.prompt + text) for task, text in zip(rows, texts, strict=True)])
    return torch.tensor([float(verdict.passed) for verdict in verdicts]).view(len(tasks), -1)


def grpo(lm: LM, tasks: Sequence[CodeTask], judge: Judge, args: Args) -> tuple[list[float], list[float]]:
    """Post-train on unit tests; the mean reward and the loss of each step come back.

    GRPO (arXiv 2402.03300): the advantage of a program is its reward, standardized within the programs of its task. The
    loss is the mean over all tokens of a step, so that short programs do not count more.
    """
    weights = list(lm.model.parameters())
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.0)
    passes = range(args.rlvr_steps * args.tasks_per_step // len(tasks) + 1)
    order = np.concatenate([np.random.default_rng([args.seed, one]).permutation(len(tasks)) for one in passes])
    rewards: list[float] = []
    losses: list[float] = []
    for step in range(1, args.rlvr_steps + 1):
        chosen = [tasks[i] for i in order[(step - 1) * args.tasks_per_step : step * args.tasks_per_step]]
        sequences = [np.random.SeedSequence([args.seed, step, place]) for place in range(len(chosen))]
        seeds = [int(sequence.generate_state(1, np.uint64)[0]) >> 1 for sequence in sequences]
        completions = sample(lm, chosen, torch.cat([random_numbers(args.group_size, args, seed) for seed in seeds]))
        reward_PG = grade(lm, judge, chosen, completions)
        centered_PG = reward_PG - reward_PG.mean(1, keepdim=True)
        advantage_R = (centered_PG / (reward_PG.std(1, correction=0, keepdim=True) + 1e-4)).flatten()
        learning = advantage_R.nonzero()[:, 0].tolist()  # a task whose programs all earn the same teaches nothing
        rewards.append(float(reward_PG.mean()))
        losses.append(0.0)
        if not learning:
            continue
        prompts = encode(lm, [chosen[row // args.group_size].prompt for row in learning])
        pairs = [(prompt, completions[row]) for prompt, row in zip(prompts, learning, strict=True)]
        target_RT = padded([[-100] * len(prompt) + ids for prompt, ids in pairs], -100)[:, 1:]
        logits_RTV = lm.model(padded([prompt + ids for prompt, ids in pairs], 0), use_cache=False).logits[:, :-1]
        logp_RT = -F.cross_entropy(logits_RTV.transpose(1, 2), target_RT, ignore_index=-100, reduction="none")
        # One update for each batch: the ratio pi / pi_old is 1 where its gradient is taken, and PPO's clip idle.
        ratio_RT = (logp_RT - logp_RT.detach()).exp() * (target_RT != -100)
        loss = -(ratio_RT * advantage_R[learning, None]).sum() / sum(map(len, completions))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = args.rlvr_learning_rate * min(1.0, step / 5)
        optimizer.step()
        losses[-1] = loss.item()
    return rewards, losses


def evaluate(lm: LM, tasks: Sequence[CodeTask], judge: Judge, args: Args) -> float:
    """pass@1: the share of sampled programs that pass all hidden tests."""
    completions = sample(lm, tasks, random_numbers(len(tasks) * args.samples, args, args.seed))
    return float(grade(lm, judge, tasks, completions).mean())


# --- The whole method, and its control beside it ----------------------------------------------------------------------


def main(args: Args) -> dict[str, float]:
    """Run RA3 and NTP and print what happens; pass@1 of both, before and after RLVR, comes back."""
    torch.set_num_threads(1)  # a model this small is slower on several
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:4.0f} s] {text}", flush=True)

    domain = IdiomsDomain(args.seed, args.length, documented=args.documented, num_held_out=args.num_tasks)
    traces = [trace.without_planted() for trace in domain.traces(args.num_traces)]
    plain = [trace.task.canonical_program for trace in traces]
    short = [trace.task.canonical_program for trace in domain.base_traces(args.num_base_traces)]
    base = make_lm([*short, *plain], args)
    losses = m_step(base, short, args.base_tokens, args)
    say(f"base model: loss {losses[0]:.2f} -> {losses[-1]:.2f} nats per token on short programs")

    annotations = e_step(traces, args, np.random.default_rng([args.seed, 1]))
    segments = np.mean([sum(switch for _, switch in path) for path in annotations.paths])
    say(f"E-step: {annotations.evidence:.2f} nats per line, {segments:.1f} segments per trace")
    rng = np.random.default_rng([args.seed, 2])
    pairs = zip(traces, annotations.paths, strict=True)
    annotated = [annotate(trace, path, annotations.names, rng) for trace, path in pairs]
    print(f"\nA trace and what RA3 makes of it:\n\n{plain[0]}\n{annotated[0]}")

    scores: dict[str, float] = {}
    with Judge(workers=2, limits=Limits(seconds=1.0, memory_mb=512)) as judge:
        for arm, texts in (("RA3", annotated), ("NTP", plain)):
            lm = LM(copy.deepcopy(base.model), base.tokenizer)
            losses = m_step(lm, texts, args.tokens, args)
            scores[arm] = evaluate(lm, domain.tasks("eval"), judge, args)
            say(f"{arm}, M-step: loss {losses[0]:.2f} -> {losses[-1]:.2f} nats per token, pass@1 {scores[arm]:.1%}")
            rewards, _ = grpo(lm, domain.tasks("rl"), judge, args)
            scores[f"{arm} + RLVR"] = evaluate(lm, domain.tasks("eval"), judge, args)
            shown = " ".join(f"{reward:.2f}" for reward in rewards)
            say(f"{arm}, RLVR: mean reward of each step {shown}, pass@1 {scores[f'{arm} + RLVR']:.1%}")
    return scores


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
