"""An amortized E-step by policy gradient: a network learns the soft value of the following lines from rewards alone.

The posterior over latents is the soft-optimal policy at temperature 1,

    q(z_t | z_{t-1}, trace)  ~  exp( r_t(z_t | z_{t-1}) + V_{t+1}(z_t) ),

with `r_t` the known reward, `log p(line_t | z_t) + log p(z_t | z_{t-1})`, and V the soft value of the lines to come,
which does not depend on z_{t-1}. So q is parametrized by V alone: a network reads the features of a line (which show
some of the following lines) and outputs `V_{t+1}(k)` for every latent k. At V = 0 the policy is greedy about the next
line.

It is trained by REINFORCE on the temporal ELBO: G paths are sampled for each trace of a batch, and a line's return R_t
is the sum of `r - log q` from that line to the last (the entropy at temperature 1). The policy's own normalizer,
`log sum_k exp(r_t(k | z_{t-1}) + V_{t+1}(k))`, is its estimate of R_t. The error of this estimate, U_t, is compared
with the U_t of the trace's other G - 1 paths at the same line:

    grad = E[ sum_t A_t  d log q(z_t | z_{t-1}) ],    A_t = U_t - mean of the others' U_t,
    d log q(z | .) / d V(k) = [k = z] - q(k | .).

At the posterior every U_t is the same on every path, so the gradient has no noise there. Nothing runs forward-backward.
Rollouts and the gradient with respect to V are one numba kernel; the network sees each line once for any G.

Shape letters: see CONTRIBUTING.md (B lines of the batch, K latents, G paths, T lines of the longest trace).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ra3gym.abstractions.inference.posterior import FloatArray, IntArray
from ra3gym.abstractions.inference.problem import InferenceProblem
from ra3gym.agents.mid_training.inference.posteriors import PathPosterior
from ra3gym.errors import ConfigError
from ra3gym.kernels import njit


@dataclass(frozen=True)
class PolicyGradientAgent:
    """Learns a `ValuePosterior`; see the module's docstring.

    Attributes:
        updates: gradient steps. With good features some hundreds suffice; too few leave the policy greedy.
        traces_per_update: traces in a batch, 16 to 256.
        group_size: G, paths of each trace, at least 2; more give a baseline with less variance.
        learning_rate: Adam's peak; decays linearly to a tenth. 1e-3 to 1e-2.
        hidden: width of the network's one hidden layer.
        max_grad_norm: gradients are clipped to this norm.
    """

    updates: int = 500
    traces_per_update: int = 64
    group_size: int = 8
    learning_rate: float = 3e-3
    hidden: int = 128
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ConfigError(f"group_size={self.group_size}: a group baseline needs at least 2 paths of a trace")
        if self.updates < 0 or self.traces_per_update < 1 or self.hidden < 1:
            raise ConfigError(
                f"updates={self.updates}, traces_per_update={self.traces_per_update}, hidden={self.hidden}: give at "
                "least 0, 1 and 1"
            )
        if self.learning_rate <= 0 or self.max_grad_norm <= 0:
            raise ConfigError(
                f"learning_rate={self.learning_rate}, max_grad_norm={self.max_grad_norm}: both must be positive"
            )

    def fit(
        self, problem: InferenceProblem, rng: np.random.Generator, start: PathPosterior | None = None
    ) -> ValuePosterior:
        """See `InferenceAgent`; continues from `start` if that is a `ValuePosterior` of the same shape."""
        F, K = problem.feature_NF.shape[1], problem.num_latents
        network = _network(F, K, self.hidden, seed=int(rng.integers(2**63)))
        if isinstance(start, ValuePosterior) and start.shape == (F, self.hidden, K):
            network.load_state_dict(start.network.state_dict())
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        feature_NF = torch.from_numpy(problem.feature_NF)
        chain = problem.chain
        for update in range(self.updates):
            optimizer.param_groups[0]["lr"] = self.learning_rate * (1.0 - 0.9 * update / self.updates)
            batch = min(self.traces_per_update, chain.num_traces)
            trace_J = rng.choice(chain.num_traces, size=batch, replace=False)
            line_B = np.concatenate([np.arange(chain.offsets[m], chain.offsets[m + 1]) for m in trace_J])
            value_BK = network(feature_NF[line_B])
            gradient_BK = _policy_gradient(
                chain.log_emission_UK,
                chain.row_N,
                chain.keep_N,
                chain.fresh_PK,
                chain.fresh_row_M,
                chain.offsets,
                trace_J,
                value_BK.detach().numpy(),
                rng.random((len(line_B), self.group_size)),
            )
            optimizer.zero_grad(set_to_none=True)
            value_BK.backward(torch.from_numpy(-gradient_BK))
            torch.nn.utils.clip_grad_norm_(network.parameters(), self.max_grad_norm)
            optimizer.step()
        return ValuePosterior(problem, network)


class ValuePosterior:
    """`q ~ exp(reward + V)`, with V a network over the features of lines."""

    def __init__(self, problem: InferenceProblem, network: torch.nn.Sequential) -> None:
        self.network = network
        self._problem = problem
        with torch.inference_mode():
            self._value_NK = network(torch.from_numpy(problem.feature_NF)).double().numpy()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Features, hidden units, latents."""
        first, last = self.network[0].weight, self.network[-1].weight
        assert isinstance(first, torch.Tensor)
        assert isinstance(last, torch.Tensor)
        return first.shape[1], first.shape[0], last.shape[0]

    def log_probs(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        """See `PathPosterior`."""
        logit_BK = self._problem.rewards(line_B, previous_B) + self._value_NK[line_B]
        highest_B1 = logit_BK.max(axis=1, keepdims=True)
        logit_BK -= highest_B1
        return np.asarray(logit_BK - np.log(np.exp(logit_BK).sum(axis=1, keepdims=True)))


def _network(features: int, latents: int, hidden: int, seed: int) -> torch.nn.Sequential:
    """Return a network with one hidden layer. Its output starts at zero, so the policy starts greedy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = torch.nn.Linear(hidden, latents)
        torch.nn.init.zeros_(output.weight)
        torch.nn.init.zeros_(output.bias)
        return torch.nn.Sequential(torch.nn.Linear(features, hidden), torch.nn.ReLU(), output)


@njit(error_model="numpy")
def _policy_gradient(
    log_emission_UK: FloatArray,
    row_N: IntArray,
    keep_N: FloatArray,
    fresh_PK: FloatArray,
    fresh_row_M: IntArray,
    offsets: IntArray,
    trace_J: IntArray,
    value_BK: np.ndarray,
    uniform_BG: FloatArray,
) -> np.ndarray:
    """Sample G paths of each trace; return the gradient of the ELBO per line with respect to `value_BK`, float32."""
    B, K = value_BK.shape
    G = uniform_BG.shape[1]
    gradient_BK = np.zeros((B, K), dtype=np.float32)
    longest = 0
    for m in trace_J:
        longest = max(longest, offsets[m + 1] - offsets[m])
    q_GTK = np.empty((G, longest, K))
    latent_GT = np.empty((G, longest), dtype=np.int64)
    missed_GT = np.empty((G, longest))
    expected_GT = np.empty((G, longest))
    gain_K = np.empty(K)
    fresh_gain_K = np.empty(K)
    base = 0
    for m in trace_J:
        length = offsets[m + 1] - offsets[m]
        fresh_K = fresh_PK[fresh_row_M[m]]
        for t in range(length):
            n = offsets[m] + t
            keep = keep_N[n] if t > 0 else 0.0
            log_b_K = log_emission_UK[row_N[n]]
            for k in range(K):
                fresh_gain_K[k] = np.log((1.0 - keep) * fresh_K[k])
            for g in range(G):
                previous = latent_GT[g, t - 1] if t > 0 else -1
                highest = -np.inf
                for k in range(K):
                    log_prior = np.log((1.0 - keep) * fresh_K[k] + keep) if k == previous else fresh_gain_K[k]
                    gain_K[k] = log_b_K[k] + log_prior
                    highest = max(highest, gain_K[k] + value_BK[base + t, k])
                total = 0.0
                for k in range(K):
                    q_GTK[g, t, k] = np.exp(gain_K[k] + value_BK[base + t, k] - highest)
                    total += q_GTK[g, t, k]
                target = uniform_BG[base + t, g] * total
                chosen, reached = 0, q_GTK[g, t, 0]
                while reached <= target and chosen < K - 1:
                    chosen += 1
                    reached += q_GTK[g, t, chosen]
                while q_GTK[g, t, chosen] == 0.0:  # rounding may end on an impossible latent
                    chosen -= 1
                for k in range(K):
                    q_GTK[g, t, k] /= total
                latent_GT[g, t] = chosen
                missed_GT[g, t] = gain_K[chosen] - np.log(q_GTK[g, t, chosen])
                expected_GT[g, t] = np.log(total) + highest
        for g in range(G):
            ahead = 0.0
            for t in range(length - 1, -1, -1):
                ahead += missed_GT[g, t]
                missed_GT[g, t] = ahead - expected_GT[g, t]
        for t in range(length):
            total = 0.0
            for g in range(G):
                total += missed_GT[g, t]
            for g in range(G):
                advantage = (missed_GT[g, t] - (total - missed_GT[g, t]) / (G - 1)) / (G * B)
                for k in range(K):
                    gradient_BK[base + t, k] -= advantage * q_GTK[g, t, k]
                gradient_BK[base + t, latent_GT[g, t]] += advantage
        base += length
    return gradient_BK
