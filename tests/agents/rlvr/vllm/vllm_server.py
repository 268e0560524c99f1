"""A small server that speaks the part of vLLM's protocol that the sampler uses, and answers with a real tiny model.

It is as strict as vLLM where that matters (fields, names, lengths, vocabulary), keeps a prefix cache that stays stale
until it is reset, loads weights in place from safetensors, and can be told to fail.
"""

from __future__ import annotations

import copy
import json
import math
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from safetensors.torch import load_file

from ra3gym import lm

FIELDS = {
    *("model", "prompt", "n", "max_tokens", "seed", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "ignore_eos", "stop_token_ids", "skip_special_tokens", "logprobs"),
    *("return_token_ids", "return_tokens_as_token_ids", "stream", "allowed_token_ids"),
}
NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
NEUTRAL |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}


class Refusal(Exception):
    """An answer other than 200, with vLLM's error body."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Refuses:
    """Answers with this status."""

    status: int
    body: str
    once_another_hangs: bool = False
    """Answer only when another request is left without an answer."""


@dataclass(frozen=True)
class Drops:
    """Closes the connection in the middle of the answer."""


@dataclass(frozen=True)
class Hangs:
    """Gives no answer until the client goes away."""


@dataclass(frozen=True)
class Answers:
    """Answers something else than the truth, made from it."""

    change: Callable[[Any], Any]


Fault = Refuses | Drops | Hangs | Answers


class VLLMServer:
    """Serves the checkpoint in `folder` from a thread; a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "policy",
        max_model_len: int = 128,
        logprobs_mode: str = "processed_logprobs",
        dev_mode: bool = True,
        loads_weights: bool = True,
        api_key: str | None = None,
        dtype: str | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.name, self.max_model_len, self.logprobs_mode = name, max_model_len, logprobs_mode
        self.dev_mode, self.loads_weights, self.api_key = dev_mode, loads_weights, api_key
        self.dtype = dtype
        self.pushed: set[torch.dtype] = set()
        """The precisions of the weights that were pushed."""
        self.bodies: dict[str, list[Any]] = defaultdict(list)
        """What was posted, by path."""
        self.hangs = threading.Event()
        """Set when a client has come that is left without an answer."""
        self.gone = threading.Semaphore(0)
        """Released when a client goes away that was left without an answer."""
        self._faults: dict[str, list[tuple[Fault, Callable[[Any], bool]]]] = defaultdict(list)
        self._read_by: dict[tuple[int, ...], Any] = {}  # the prefix cache: which weights read a prompt
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.handle(self, None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.handle(self, json.loads(body) if body else None)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> VLLMServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fail(self, path: str, *faults: Fault, when: Callable[[Any], bool] = lambda body: True) -> None:
        """The next requests to `path` (whose body is such) meet with these faults, one each."""
        self._faults[path] += [(fault, when) for fault in faults]

    def handle(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        path = urlsplit(handler.path).path
        with self._lock:
            self.bodies[path].append(body)
            fault = self._next_fault(path, body)
            status, answer = 200, b""
            if isinstance(fault, Refuses):
                status, answer = fault.status, fault.body.encode()
            elif not isinstance(fault, Hangs):
                try:
                    content = self._answer(handler, path, body)
                    content = fault.change(content) if isinstance(fault, Answers) else content
                    answer = b"" if content is None else json.dumps(content).encode()
                except Refusal as refusal:
                    status = refusal.status
                    answer = json.dumps({"error": {"message": str(refusal), "code": status}}).encode()
        if isinstance(fault, Refuses) and fault.once_another_hangs:
            self.hangs.wait()
        if isinstance(fault, Hangs):
            self.hangs.set()
            handler.connection.recv(1)
            self.gone.release()
            handler.close_connection = True
            return
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer[: len(answer) // 2] if isinstance(fault, Drops) else answer)
        handler.close_connection = isinstance(fault, Drops)

    def _next_fault(self, path: str, body: Any) -> Fault | None:
        for index, (fault, when) in enumerate(self._faults[path]):
            if when(body):
                del self._faults[path][index]
                return fault
        return None

    def _answer(self, handler: BaseHTTPRequestHandler, path: str, body: Any) -> Any:
        if path == "/health":
            return None
        if self.api_key is not None and handler.headers.get("Authorization") != f"Bearer {self.api_key}":
            raise Refusal(401, "Unauthorized")
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": self.name, "max_model_len": self.max_model_len}]}
        if path == "/v1/completions":
            return self._completions(body)
        if path == "/collective_rpc" and self.dev_mode:
            self._reload(body)
            return {"results": [None]}
        if path == "/reset_prefix_cache" and self.dev_mode:
            assert parse_qs(urlsplit(handler.path).query) == {"reset_running_requests": ["true"]}
            self._read_by.clear()
            return {"success": True}
        if path == "/server_info" and self.dev_mode and self.dtype is not None:
            return {"vllm_config": f"model='{self.name}', dtype=torch.{self.dtype}, kv_cache_dtype=auto, seed=0"}
        raise Refusal(404, "Not Found")

    def _reload(self, body: Any) -> None:
        if body["method"] != "reload_weights" or set(body["kwargs"]) != {"weights_path"}:
            raise Refusal(500, f"no such method: {body}")
        files = sorted(Path(body["kwargs"]["weights_path"]).glob("*.safetensors"))
        if not files:
            raise Refusal(500, f"Cannot find any model weights with `{body['kwargs']['weights_path']}`")
        if not self.loads_weights:
            return
        model = copy.deepcopy(self.model)  # the prefix cache still belongs to the old one
        weights = {name: weight for file in files for name, weight in load_file(file).items()}
        self.pushed = {weight.dtype for weight in weights.values()}
        try:
            unknown = model.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise Refusal(500, str(error)) from error
        assert not unknown.unexpected_keys
        self.model = model

    def _completions(self, body: dict[str, Any]) -> Any:
        self._check(body)
        prompt = body["prompt"]
        model = self._read_by.setdefault(tuple(prompt), self.model)
        choices = []
        for index in range(body["n"]):
            samples = self._sample(model, body, index)
            (tokens,), logp = samples.completions(), samples.logp_RT[0].tolist()
            if self.logprobs_mode == "raw_logprobs":
                logp = lm.completion_logprobs(model, [prompt], [tokens])[0][0].tolist()
            names = [f"token_id:{token}" for token in tokens]
            choices.append(
                {
                    "index": index,
                    "text": "",
                    "prompt_token_ids": prompt,
                    "token_ids": tokens,
                    "finish_reason": "stop" if bool(samples.finished_R[0]) else "length",
                    "stop_reason": tokens[-1] if bool(samples.finished_R[0]) else None,
                    "logprobs": {"tokens": names, "token_logprobs": logp, "text_offset": [0] * len(tokens)},
                }
            )
        return {"id": "cmpl-0", "object": "text_completion", "model": self.name, "choices": choices}

    def _sample(self, model: Any, body: dict[str, Any], index: int) -> lm.Samples:
        allowed_mask_V = None
        if "allowed_token_ids" in body:
            allowed_mask_V = torch.zeros(model.config.vocab_size, dtype=torch.bool)
            allowed_mask_V[body["allowed_token_ids"]] = True
        own_end = [] if body["ignore_eos"] else [model.config.eos_token_id]
        return lm.generate(
            model,
            [body["prompt"]],
            max_new_tokens=min(body["max_tokens"], self.max_model_len - len(body["prompt"])),
            eos_id=[*body["stop_token_ids"], *own_end],
            pad_id=1,
            generator=torch.Generator().manual_seed(body["seed"] + index),
            temperature=body["temperature"],
            allowed_mask_V=allowed_mask_V,
        )

    def _check(self, body: dict[str, Any]) -> None:
        vocab_size = self.model.config.vocab_size
        ids = [*body["prompt"], *body["stop_token_ids"], *body.get("allowed_token_ids", [])]
        if body["model"] != self.name:
            raise Refusal(404, f"The model `{body['model']}` does not exist.")
        if set(body) - FIELDS or body["stream"] or not body["return_token_ids"] or body["logprobs"] != 0:
            raise Refusal(400, f"not what this server answers: {sorted(set(body) - FIELDS)}")
        if any(body[field] != value for field, value in NEUTRAL.items()):
            raise Refusal(400, "this server samples from the model itself")
        if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
            raise Refusal(400, f"Token id {max(ids)} is out of vocabulary")
        if len(body["prompt"]) >= self.max_model_len or not 0 < body["temperature"] < math.inf:
            raise Refusal(400, f"This model's maximum context length is {self.max_model_len} tokens")
