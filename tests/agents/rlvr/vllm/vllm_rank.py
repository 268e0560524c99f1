"""One process of a data-parallel run whose policy is sharded (FSDP2) and whose rollouts come from a server.

    python vllm_rank.py RANK STORE URL POLICY_FOLDER WEIGHTS_FOLDER OUTPUT

Updates the server and samples one prompt of its own, then updates again and expects that to fail.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from ra3gym.agents.rlvr.vllm.sampler import VLLMSampler
from ra3gym.errors import SamplerError


def main(rank: int, store: str, url: str, policy_folder: str, weights_folder: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    policy = AutoModelForCausalLM.from_pretrained(policy_folder)
    for layer in policy.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    sampler = VLLMSampler(url, weights_folder=weights_folder, retries=0)
    sampler.update(policy)
    samples = sampler.sample(
        [[5 + rank]],
        group_size=4,
        max_new_tokens=8,
        temperature=1.0,
        generator=torch.Generator().manual_seed(rank),
        eos_ids=[2],
        pad_id=1,
    )
    dist.barrier()
    failure = ""
    try:
        sampler.update(policy)
    except SamplerError as error:
        failure = str(error)
    torch.save({"completions": samples.completions(), "gap": sampler.logp_gap, "failure": failure}, output)
    sampler.close()
    # DTensor's caches keep gloo's threads beyond the group's end, where they can abort the exit (pytorch#190489).
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
