"""HTTP to a vLLM server: concurrent requests, and the failures between two machines.

Only the standard library is used. A failure raises a `SamplerError` that names the URL and the way out:

- a server that cannot be reached raises at once: it has lost the weights that were pushed to it, and another server in
  its place would silently sample from other weights;
- a connection lost after the request was sent, and the answers 429, 502, 503 and 504 (busy), lead to a few more
  attempts; every request here may be sent twice (seeded sampling, loading the same folder);
- any other refusal, a timeout and an answer that is not JSON raise at once.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ra3gym.errors import ConfigError, SamplerError

T = TypeVar("T")

_TRY_AGAIN = frozenset({429, 502, 503, 504})
_POLL_SECONDS = 0.5
_CONNECT_SECONDS = 10.0
_START_ONE = "start one as docs/vllm.md says, or correct the URL"


class _ConnectionLost(Exception):
    """The request was sent, and no complete answer came back."""


class _OpenSockets:
    """The connections of one batch of requests, closed together when one of them fails or the user interrupts.

    vLLM drops the requests of closed connections, so it stops computing answers that nobody reads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.cut = threading.Event()

    @contextmanager
    def holding(self, sock: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(sock)
        try:
            if self.cut.is_set():
                raise _ConnectionLost("closed, because another request failed")
            yield
        finally:
            with self._lock:
                self._open.discard(sock)

    def cut_all(self) -> None:
        self.cut.set()
        with self._lock:
            for sock in self._open:
                with suppress(OSError):  # already closed
                    sock.shutdown(socket.SHUT_RDWR)


class VLLMClient:
    """Requests to one vLLM server.

    Args:
        url: the root of the server, such as "http://127.0.0.1:8000"; a trailing "/v1" is allowed. Proxies named in
            the environment are not used.
        api_key: the server's `--api-key`.
        timeout: seconds to wait for an answer; the answer to a completion comes after its last token.
        retries: how often a request is sent again after a broken connection or a busy server.
        retry_wait: seconds before the first repetition; doubled for each next one.
        concurrency: largest number of requests at a time; vLLM batches them itself.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 3,
        retry_wait: float = 1.0,
        concurrency: int = 64,
    ) -> None:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:  # the port is not a number
            host, port = None, None
        if parts.scheme not in {"http", "https"} or not host:
            raise ConfigError(f"vLLM URL {url!r}: give it with scheme and host, such as http://127.0.0.1:8000")
        if timeout <= 0 or retries < 0 or retry_wait < 0 or concurrency < 1:
            raise ConfigError(
                f"timeout={timeout}, retries={retries}, retry_wait={retry_wait}, concurrency={concurrency}: give a "
                "positive number of seconds, at least 0, at least 0 seconds, and at least 1"
            )
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._address = (host, port)
        self._connection_type = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{self._path}"
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._retries = retries
        self._retry_wait = retry_wait
        self._concurrency = concurrency

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the server reports that it is healthy.

        Raises:
            SamplerError: it did not within that time; with 0 seconds it is asked once.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                status, answer = self._exchange("GET", "/health", None, _OpenSockets(), timeout=_CONNECT_SECONDS)
                if status == 200:
                    return
                reason = f"/health answers {status} {_detail(answer)}"
            except (SamplerError, _ConnectionLost) as error:
                reason = str(error)
            if (left := deadline - time.monotonic()) <= 0:
                raise SamplerError(f"no vLLM server was ready at {self.url} within {seconds:g} s: {reason}")
            time.sleep(min(_POLL_SECONDS, left))  # a server that loads a model has no event to wait for

    def get(self, path: str) -> Any:
        """Return the JSON answer to a GET."""
        return self._request("GET", path, None, _OpenSockets())

    def post(self, path: str, body: Any = None) -> Any:
        """Return the JSON answer to a POST; `None` for an empty one."""
        return self._request("POST", path, body, _OpenSockets())

    def post_all(self, path: str, bodies: Sequence[Any], read: Callable[[int, Any], T]) -> list[T]:
        """Post all bodies, up to `concurrency` at a time; return `read(i, answer)` for each, in order.

        When one request fails, or the wait is interrupted, the connections of the others are closed.
        """
        sockets = _OpenSockets()

        def one(index: int) -> T:
            return read(index, self._request("POST", path, bodies[index], sockets))

        with ThreadPoolExecutor(max_workers=min(len(bodies), self._concurrency), thread_name_prefix="vllm") as pool:
            futures = [pool.submit(one, index) for index in range(len(bodies))]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:  # interrupts, too: the pool would wait for all answers
                pool.shutdown(wait=False, cancel_futures=True)
                sockets.cut_all()
                raise
        return [future.result() for future in futures]

    def _request(self, method: str, path: str, body: Any, sockets: _OpenSockets) -> Any:
        reason = ""
        for attempt in range(1 + self._retries):
            if attempt and sockets.cut.wait(self._retry_wait * 2 ** (attempt - 1)):
                break
            try:
                status, answer = self._exchange(method, path, body, sockets, timeout=self._timeout)
            except _ConnectionLost as error:
                reason = str(error)
                continue
            if status == 200:
                return self._decoded(path, answer)
            reason = f"HTTP {status}: {_detail(answer)}"
            if status not in _TRY_AGAIN:
                break
        else:
            reason += f" (tried {1 + self._retries} times)"
        raise SamplerError(f"vLLM at {self.url}{path}: {reason}{_way_out(path, reason)}")

    def _exchange(
        self, method: str, path: str, body: Any, sockets: _OpenSockets, *, timeout: float
    ) -> tuple[int, bytes]:
        """Return status and body of one answer."""
        host, port = self._address
        connection = self._connection_type(host, port, timeout=min(timeout, _CONNECT_SECONDS))
        try:
            connection.connect()
        except OSError as error:  # refused, unknown host, no route, no TLS, no answer
            raise SamplerError(
                f"cannot reach a vLLM server at {self.url}: {_words(error)}. If none runs there, {_START_ONE}; one "
                "that stopped has lost the policy's weights: start it and resume the run"
            ) from error
        with closing(connection), sockets.holding(connection.sock):
            connection.sock.settimeout(timeout)
            try:
                payload = None if body is None else json.dumps(body).encode()
                connection.request(method, self._path + path, payload, self._headers)
                response = connection.getresponse()
                return response.status, response.read()
            except TimeoutError as error:
                raise SamplerError(
                    f"vLLM at {self.url}{path} gave no answer within {timeout:g} s; raise the timeout, or ask for "
                    "fewer or shorter completions at a time"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                raise _ConnectionLost(f"the connection broke: {_words(error)}") from error

    def _decoded(self, path: str, answer: bytes) -> Any:
        if not answer.strip():
            return None
        try:
            return json.loads(answer)
        except ValueError as error:
            raise SamplerError(
                f"what answers at {self.url}{path} is no vLLM server: expected JSON, got {answer[:80]!r}; {_START_ONE}"
            ) from error


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _detail(answer: bytes) -> str:
    """Return an error's message: vLLM's `{"error": {"message"}}`, FastAPI's `{"detail"}`, or the text itself."""
    try:
        content = json.loads(answer)
    except ValueError:
        content = answer.decode(errors="replace")
    if isinstance(content, dict):
        content = content.get("error") or content.get("detail") or content.get("message") or content
    if isinstance(content, dict):
        content = content.get("message", content)
    return " ".join(str(content).split())[:500]


def _way_out(path: str, reason: str) -> str:
    if reason.startswith("HTTP 401"):
        return ". Give the server's --api-key"
    if reason.startswith("HTTP 404") and not path.startswith("/v1/"):
        return ". Start the server with VLLM_SERVER_DEV_MODE=1, which opens its endpoints for weights"
    if reason.startswith("HTTP 5"):
        return ". The server's log says more; if its engine died, start it again and resume the run"
    return ""
