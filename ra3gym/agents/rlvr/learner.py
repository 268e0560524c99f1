"""Updates of the policy from one batch of rollouts, on one process or on every rank of a data-parallel group.

The loss is a sum over decisions whose weights come from the whole batch's totals (`token_weights`). So micro-batches
and ranks add up: how a batch is cut changes nothing but rounding.

Shape letters: see CONTRIBUTING.md (R rows of this rank, B rows of a micro-batch, T time). Names that begin with `all_`
hold the rows of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym.agents.rlvr.algorithms.kl import kl_estimate
from ra3gym.agents.rlvr.algorithms.objectives import truncated_importance_weights, value_loss
from ra3gym.agents.rlvr.algorithms.registry import Algorithm, RolloutBatch, token_weights
from ra3gym.agents.rlvr.algorithms.scope import Marks, Scope
from ra3gym.agents.rlvr.config import RLVRConfig
from ra3gym.agents.rlvr.measures import UpdateMetrics, UpdateSums
from ra3gym.agents.rlvr.policy import Policy, PolicyScores, ScoreRequest
from ra3gym.agents.rlvr.rollouts.rollouts import Rollouts


@dataclass(frozen=True)
class _Fixed:
    """Tensors that stay the same over a batch's updates, on the policy's device.

    Attributes:
        old_logp_RT: `None` when a batch gets a single update, whose own log-probabilities are the old ones.
        all_decisions_R: number of decisions in each row, of all ranks.
        kl_sum: of a KL in the reward, over the decisions of this rank, nats.
    """

    marks: Marks
    advantage_RT: Tensor
    sampled_logp_RT: Tensor
    old_logp_RT: Tensor | None
    reference_logp_RT: Tensor | None
    old_value_RT: Tensor | None
    return_RT: Tensor | None
    all_decisions_R: Tensor
    kl_sum: float


class Learner:
    """Computes the loss of rollouts and updates the policy.

    Args:
        policy: as `accelerator.prepare` returned it.
        optimizer: as `accelerator.prepare` returned it.
        accelerator: sums over ranks and clips gradients.
        algorithm: advantage and objective.
        scope: marks the decisions.
        config: weights, lengths and the size of micro-batches.
        reference: the frozen model that KL is measured to; `None` without KL.
        allowed_mask_V: bool, the tokens that could be sampled; all when `None`.
        on_policy_logp: the sampler's log-probabilities are the policy's own (`Sampler.on_policy_logp`).
    """

    def __init__(
        self,
        policy: Any,
        optimizer: Any,
        accelerator: Any,
        algorithm: Algorithm,
        scope: Scope,
        config: RLVRConfig,
        *,
        reference: Policy | None,
        allowed_mask_V: Tensor | None,
        on_policy_logp: bool,
    ) -> None:
        self._policy, self._optimizer, self._accelerator = policy, optimizer, accelerator
        self._algorithm, self._scope, self._config = algorithm, scope, config
        self._reference = reference
        self._allowed_mask_V = allowed_mask_V
        self._on_policy_logp = on_policy_logp
        self.updates = 0
        """Number of optimizer steps so far."""

    def step(self, rollouts: Rollouts) -> UpdateMetrics:
        """Update the policy on one batch; `NonFiniteError` for a gradient that is not finite, without that update."""
        fixed = self._prepare(rollouts)
        algorithm = self._algorithm
        totals = UpdateSums()
        grad_norm = 0.0
        self._policy.train()
        for _ in range(algorithm.updates_per_batch):
            for part in range(algorithm.minibatches):
                groups = range(part, len(rollouts.tasks), algorithm.minibatches)
                rows = [row for group in groups for row in rollouts.rows_of(group)]
                sums, norm = self._update(rollouts, fixed, rows)
                totals += sums
                grad_norm = max(grad_norm, norm)
        self._policy.eval()
        count = algorithm.updates_per_batch * algorithm.minibatches
        decisions = max(1.0, float(fixed.all_decisions_R.sum())) * algorithm.updates_per_batch
        kl_updates = algorithm.updates_per_batch if algorithm.kl_place == "reward" else 1
        total = (totals + UpdateSums(kl=fixed.kl_sum * kl_updates)).over_ranks(self._accelerator)
        compared = None if self._on_policy_logp else max(1.0, total.compared)
        return UpdateMetrics(
            loss=total.loss / count,
            grad_norm=grad_norm,
            clip_fraction=total.clipped / decisions,
            kl=None if self._reference is None else total.kl / decisions,
            value_loss=total.value / decisions if algorithm.needs_value else None,
            mismatch=None if compared is None else total.gap / compared,
            mismatch_max=None if compared is None else total.gap_max,
            mismatch_cut=None if compared is None else total.cut / compared,
        )

    def _prepare(self, rollouts: Rollouts) -> _Fixed:
        """Score the rows with the policy before its updates, and compute advantages over the batches of all ranks."""
        algorithm, device = self._algorithm, self._accelerator.device
        marks = self._marks(rollouts)
        sampled_logp_RT = rollouts.logp_RT[:, : marks.acts_RT.shape[1]]
        single = algorithm.updates_per_batch * algorithm.minibatches == 1
        kl_in_reward = self._reference is not None and algorithm.kl_place == "reward"
        # Where the sampler's arithmetic is not the trainer's, the old log-probabilities are from a pass of the trainer.
        own_pass = not self._on_policy_logp and (kl_in_reward or not single)
        logp_RT = sampled_logp_RT
        kl_RT, value_RT, reference_RT = None, None, None
        if algorithm.needs_value or own_pass:
            before = self._score(self._policy, rollouts)
            value_RT = before.value_RT
            logp_RT = before.logp_RT if own_pass else sampled_logp_RT
        if self._reference is not None:
            reference_RT = self._score(self._reference, rollouts).logp_RT
            if kl_in_reward:
                kl_RT = kl_estimate(logp_RT, reference_RT, algorithm.kl_estimator) * marks.acts_RT
        local = RolloutBatch(
            reward_R=rollouts.neutral_rewards(),
            group_size=rollouts.group_size,
            acts_RT=marks.acts_RT,
            duration_RT=marks.duration_RT,
            kl_RT=kl_RT,
            value_RT=None if value_RT is None else value_RT * marks.acts_RT,
        )
        whole = self._gathered(local)
        all_advantage_RT = algorithm.advantages(whole)
        all_return_RT = algorithm.returns(whole, all_advantage_RT) if algorithm.needs_value else None
        R, T = marks.acts_RT.shape
        first_row = self._accelerator.process_index * R

        def here(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        def of_this_rank(all_RT: Tensor) -> Tensor:
            return all_RT[first_row : first_row + R, :T].to(device)

        return _Fixed(
            marks=Marks(marks.acts_RT.to(device), marks.weight_RT.to(device), marks.duration_RT.to(device)),
            advantage_RT=of_this_rank(all_advantage_RT),
            sampled_logp_RT=sampled_logp_RT.to(device),
            old_logp_RT=None if single else here(logp_RT),
            reference_logp_RT=here(reference_RT),
            old_value_RT=here(value_RT),
            return_RT=None if all_return_RT is None else of_this_rank(all_return_RT),
            all_decisions_R=whole.acts_RT.sum(1),
            kl_sum=0.0 if kl_RT is None else float(kl_RT.sum()),
        )

    def _marks(self, rollouts: Rollouts) -> Marks:
        """Return the decisions of the rows: not masked rows, nor tokens that write text which a prompt forces."""
        marks = self._scope.mark(rollouts.completions).without(rollouts.masked_R)
        for row, choice in enumerate(rollouts.first_choices):
            for of_row_RT in (marks.acts_RT, marks.weight_RT, marks.duration_RT):
                of_row_RT[row, : choice.column] = 0
        return marks

    def _gathered(self, local: RolloutBatch) -> RolloutBatch:
        """Return the batch of all ranks, in the order of the ranks."""
        if self._accelerator.num_processes == 1:
            return local

        def gather(tensor: Tensor) -> Tensor:
            padded = tensor.to(self._accelerator.device)
            if tensor.dim() > 1:
                padded = self._accelerator.pad_across_processes(padded, dim=1)
            gathered: Tensor = self._accelerator.gather(padded)
            return gathered.cpu()

        return RolloutBatch(
            reward_R=gather(local.reward_R),
            group_size=local.group_size,
            acts_RT=gather(local.acts_RT.long()).bool(),
            duration_RT=gather(local.duration_RT),
            kl_RT=None if local.kl_RT is None else gather(local.kl_RT),
            value_RT=None if local.value_RT is None else gather(local.value_RT),
        )

    @torch.no_grad()
    def _score(self, policy: Any, rollouts: Rollouts) -> PolicyScores:
        """Return every row's scores under a policy, on the CPU."""
        was_training = policy.training
        policy.eval()
        length = max(map(len, rollouts.completions))
        parts = []
        batches = list(self._micro_batches(rollouts, range(len(rollouts.completions))))
        for rows in self._as_many_on_every_rank(batches):
            scores = policy(self._request(rollouts, rows or [0]))
            if rows:
                parts.append(scores)
        policy.train(was_training)

        def stacked(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.pad(one.cpu(), (0, length - one.shape[1])) for one in tensors])

        values = [part.value_RT for part in parts if part.value_RT is not None]
        return PolicyScores(
            stacked([part.logp_RT for part in parts]),
            None,
            stacked(values) if values else None,
            stacked([part.mask_RT for part in parts]),
        )

    def _update(self, rollouts: Rollouts, fixed: _Fixed, rows: Sequence[int]) -> tuple[UpdateSums, float]:
        """Take an optimizer step on some rows of every rank; return this rank's sums and the gradient's norm.

        The sums are those of `_loss`.
        """
        algorithm, accelerator = self._algorithm, self._accelerator
        num_ranks = accelerator.num_processes
        # The minibatch consists of the same rows of every rank.
        decisions = int(fixed.all_decisions_R.view(num_ranks, -1)[:, torch.tensor(rows)].sum())
        weight_RT = fixed.marks.weight_RT * token_weights(
            fixed.marks.acts_RT,
            algorithm.aggregation,
            num_decisions=decisions,
            num_rows=len(rows) * num_ranks,
            max_new_tokens=self._config.max_new_tokens,
        )
        if not self._every_row_counts():
            rows = [row for row in rows if bool(fixed.advantage_RT[row].any())]
        sums = UpdateSums()
        batches = self._as_many_on_every_rank(list(self._micro_batches(rollouts, rows)))
        if not batches:
            return sums, 0.0  # there is nothing to learn on any rank
        self._optimizer.zero_grad(set_to_none=True)
        for index, chosen in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self._policy):
                loss, parts = self._loss(rollouts, fixed, weight_RT, chosen)
                # Data-parallel wrappers average gradients over ranks, and here they have to add up.
                accelerator.backward(loss * num_ranks)
                sums += parts
        norm = float(accelerator.clip_grad_norm_(self._policy.parameters(), self._config.max_grad_norm))
        if not torch.isfinite(torch.tensor(norm)):
            raise NonFiniteError(norm, sums.loss)
        self._optimizer.step()
        self.updates += 1
        return sums, norm

    def _loss(
        self, rollouts: Rollouts, fixed: _Fixed, weight_RT: Tensor, rows: Sequence[int]
    ) -> tuple[Tensor, UpdateSums]:
        """Return the loss of a micro-batch, and what it measured. Without rows the loss is 0."""
        algorithm = self._algorithm
        scores: PolicyScores = self._policy(self._request(rollouts, rows or [0]))
        if not rows:  # other ranks have rows, and data-parallel wrappers communicate in every pass
            zero = scores.logp_RT.sum() * 0.0
            if scores.value_RT is not None:
                zero = zero + scores.value_RT.sum() * 0.0
            return zero, UpdateSums()
        T = scores.logp_RT.shape[1]
        at = torch.tensor(rows, device=weight_RT.device)

        def cut(tensor_RT: Tensor) -> Tensor:
            return tensor_RT[at, :T]

        acts_BT, weight_BT = cut(fixed.marks.acts_RT), cut(weight_RT)
        old_logp_BT = scores.logp_RT.detach() if fixed.old_logp_RT is None else cut(fixed.old_logp_RT)
        loss_BT, clipped_BT = algorithm.token_losses(scores.logp_RT, old_logp_BT, cut(fixed.advantage_RT), acts_BT)
        measured = UpdateSums()
        if not self._on_policy_logp:
            sampled_logp_BT = cut(fixed.sampled_logp_RT)
            measured = _mismatch(old_logp_BT, sampled_logp_BT, acts_BT, algorithm.off_policy_cap)
            if algorithm.off_policy_cap is not None:
                loss_BT = loss_BT * truncated_importance_weights(old_logp_BT, sampled_logp_BT, algorithm.off_policy_cap)
        kl_sum, value_sum = 0.0, 0.0
        if fixed.reference_logp_RT is not None and algorithm.kl_place == "loss":
            reference_logp_BT = cut(fixed.reference_logp_RT)
            kl_BT = kl_estimate(scores.logp_RT, reference_logp_BT, algorithm.kl_estimator) * acts_BT
            kl_sum = float(kl_BT.detach().sum())
            loss_BT = loss_BT + algorithm.kl_coefficient * kl_BT
        if scores.entropy_RT is not None:
            loss_BT = loss_BT - algorithm.entropy_coefficient * scores.entropy_RT
        loss = (weight_BT * loss_BT).sum()
        if scores.value_RT is not None:
            assert fixed.old_value_RT is not None
            assert fixed.return_RT is not None
            old_value_BT, return_BT = cut(fixed.old_value_RT), cut(fixed.return_RT)
            value_BT = value_loss(scores.value_RT, old_value_BT, return_BT, algorithm.value_clip) * acts_BT
            value_sum = float(value_BT.detach().sum())
            loss = loss + algorithm.value_coefficient * (weight_BT * value_BT).sum()
        clipped = float((clipped_BT & acts_BT).sum())
        return loss, measured + UpdateSums(float(loss.detach()), clipped, kl_sum, value_sum)

    def _every_row_counts(self) -> bool:
        """Return whether rows without advantage have a gradient, too."""
        algorithm = self._algorithm
        return bool(
            (self._reference is not None and algorithm.kl_place == "loss")
            or algorithm.entropy_coefficient
            or algorithm.needs_value
        )

    def _request(self, rollouts: Rollouts, rows: Sequence[int]) -> ScoreRequest:
        groups = sorted({row // rollouts.group_size for row in rows})
        place = {group: index for index, group in enumerate(groups)}
        return ScoreRequest(
            prompts=[rollouts.prompts[group] for group in groups],
            completions=[rollouts.completions[row] for row in rows],
            prompt_of_row=[place[row // rollouts.group_size] for row in rows],
            temperature=self._config.temperature,
            allowed_mask_V=self._allowed_mask_V,
            entropy=bool(self._algorithm.entropy_coefficient) and torch.is_grad_enabled(),
            first_choices=[rollouts.first_choices[row] for row in rows] if rollouts.first_choices else (),
        )

    def _micro_batches(self, rollouts: Rollouts, rows: Sequence[int]) -> Iterator[list[int]]:
        """Yield the rows in order, in batches of at most `tokens_per_forward` tokens (but at least one row)."""
        most = self._config.tokens_per_forward
        assert most is not None
        batch: list[int] = []
        size, group = 0, -1
        for row in rows:
            new_group = row // rollouts.group_size
            cost = len(rollouts.completions[row]) + (len(rollouts.prompts[new_group]) if new_group != group else 0)
            if batch and size + cost > most:
                yield batch
                batch, size = [], 0
                cost = len(rollouts.completions[row]) + len(rollouts.prompts[new_group])
            batch.append(row)
            size, group = size + cost, new_group
        if batch:
            yield batch

    def _as_many_on_every_rank(self, batches: list[list[int]]) -> list[list[int]]:
        """Append empty batches, so that every rank has as many as the rank with most."""
        if self._accelerator.num_processes == 1:
            return batches
        count = torch.tensor([len(batches)], device=self._accelerator.device)
        most = int(self._accelerator.gather(count).max())
        return batches + [[] for _ in range(most - len(batches))]


def _mismatch(old_logp_BT: Tensor, sampled_logp_BT: Tensor, acts_BT: Tensor, cap: float | None) -> UpdateSums:
    """Compare the trainer's log-probabilities before its updates with the sampler's."""
    log_ratio = (old_logp_BT - sampled_logp_BT)[acts_BT]
    gap = log_ratio.abs()
    return UpdateSums(
        gap=float(gap.sum()),
        cut=0.0 if cap is None else float((log_ratio.exp() > cap).sum()),
        compared=len(gap),
        gap_max=float(gap.max()) if len(gap) else 0.0,
    )


class NonFiniteError(ArithmeticError):
    """A gradient that is not finite; its update was not made."""

    def __init__(self, grad_norm: float, loss: float) -> None:
        super().__init__(f"gradient norm {grad_norm}, loss {loss}")
