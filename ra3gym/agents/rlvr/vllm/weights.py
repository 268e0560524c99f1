"""Weights for a vLLM server, transferred through a folder.

The trainer writes a checkpoint to a folder that the server can read. The server loads it in place (`reload_weights`
over `/collective_rpc`) and empties its prefix cache, which the old weights computed. Every push uses a new folder, so
that no cache of files or mapped memory can return old weights.

No weights go over the network, so every trainer can push to every server, on the CPU, too. vLLM's own transfer over
NCCL needs no folder, but it needs vLLM and a GPU in the trainer's process.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from ra3gym.agents.rlvr.checkpoint import whole_weights
from ra3gym.agents.rlvr.vllm.client import VLLMClient
from ra3gym.errors import SamplerError

T = TypeVar("T")


class WeightPusher:
    """Writes checkpoints and has one server load them.

    Args:
        client: of the server, whose development endpoints must be open.
        weights_folder: the folder's path for the trainer; the folder for temporary files when `None`.
        server_folder: the folder's path for the server; the same path when `None`.
        dtype: write the weights in this precision, that of the server; `None` writes them as they are.
    """

    def __init__(
        self,
        client: VLLMClient,
        weights_folder: str | os.PathLike[str] | None,
        server_folder: str | os.PathLike[str] | None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._client, self._dtype = client, dtype
        self._folder = Path(tempfile.gettempdir() if weights_folder is None else weights_folder).absolute()
        self._server_folder = self._folder if server_folder is None else Path(server_folder)
        self._run_folder: Path | None = None
        self._pushes = 0

    def push(self, model: Any, weights: dict[str, Tensor] | None) -> None:
        """Have the server load `weights`, or those of `model` when `None`; earlier checkpoints are removed.

        Raises:
            SamplerError: the weights cannot be written, or the server cannot load them.
        """
        fresh = self._write(model, weights)
        seen = self._server_folder / fresh.relative_to(self._folder)
        try:
            self._client.post(
                "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": seen.as_posix()}}
            )
        except SamplerError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise SamplerError(
                f"{error}. (The server could not load {seen}: it must see and read that folder, hold a model of the "
                "same shapes, and not be started with --load-format dummy)"
            ) from error
        # Without reset_running_requests vLLM answers 200 but keeps the cache while any request is running.
        emptied = self._client.post("/reset_prefix_cache?reset_running_requests=true")
        if isinstance(emptied, dict) and emptied.get("success") is False:
            raise SamplerError(
                f"vLLM at {self._client.url} could not empty its prefix cache, which the old weights computed; nobody "
                "else may use the server during a run"
            )
        for old in fresh.parent.iterdir():
            if old != fresh:
                shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Remove the checkpoints; safe to call twice."""
        if self._run_folder is not None:
            shutil.rmtree(self._run_folder, ignore_errors=True)
            self._run_folder = None

    def _write(self, model: Any, weights: dict[str, Tensor] | None) -> Path:
        try:
            if self._run_folder is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._run_folder = Path(tempfile.mkdtemp(dir=self._folder, prefix="ra3gym-vllm-"))
                self._run_folder.chmod(0o755)  # the server may run as another user
            self._pushes += 1
            fresh = self._run_folder / f"{self._pushes:06d}"
            if self._dtype is not None:
                weights = _in_precision(model.state_dict() if weights is None else weights, self._dtype)
            model.save_pretrained(fresh, state_dict=weights)
        except (OSError, SafetensorError) as error:
            raise SamplerError(
                f"cannot write the policy's weights to {self._folder}: {error}; give a weights_folder with room for "
                "two checkpoints"
            ) from error
        return fresh


def _in_precision(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights in another precision; those that share memory (tied embeddings) still do."""
    cast_of: dict[tuple[int, torch.Size], Tensor] = {}
    for weight in weights.values():
        if weight.is_floating_point():
            cast_of.setdefault((weight.data_ptr(), weight.shape), weight.detach().to(dtype))
    return {name: cast_of.get((weight.data_ptr(), weight.shape), weight) for name, weight in weights.items()}


def gathered_weights(model: Any) -> dict[str, Tensor] | None:
    """Return the weights of a sharded model (FSDP2) on the first process; `None` for a model that is not sharded.

    Every process must call this.
    """
    from torch.distributed.tensor import DTensor

    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return None
    return whole_weights(model)


def on_first_process(work: Callable[[], T]) -> T:
    """Call `work` on the first process; return its result, or raise its `SamplerError`, on all processes."""
    if not dist.is_initialized():
        return work()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except SamplerError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise SamplerError(outcome[1])
    return cast(T, outcome[0])
