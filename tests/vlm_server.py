"""A server of vision-language models on this machine: with vLLM's documented answers, or with bad ones."""

from __future__ import annotations

import base64
import io
import json
import math
import string
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from local_server import LocalHandler, LocalServer, running

CHAT, SYSTEMONE = "/v1/chat/completions", "/v1/systemone"
MODEL = "Qwen/Qwen2-VL-7B-Instruct"
Body = dict[str, Any]
Reply = Callable[["Handler", Body], None]


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: Body


class VlmServer(LocalServer):
    """Answers by path; remembers what it was asked, and how many at most at once."""

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        super().__init__(Handler)
        self.replies = dict(replies)
        self.asked: list[Asked] = []
        self.now = self.busiest = 0
        self.lock = threading.Lock()

    @property
    def weights(self) -> str:
        """As a ModelSpec has them."""
        return f"{self.url}/v1#{MODEL}"

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]


class Handler(LocalHandler):
    server: VlmServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(Asked(self.path, dict(self.headers), body))
            server.now += 1
            server.busiest = max(server.busiest, server.now)
        try:
            server.replies.get(self.path, not_found)(self, body)
        finally:
            with server.lock:
                server.now -= 1


def not_found(handler: Handler, body: Body) -> None:
    handler.say(404, {"detail": "Not Found"})


def refuses(status: int, said: Any = "no", **headers: str) -> Reply:
    return lambda handler, body: handler.say(status, {"detail": said}, **headers)


def says(value: Any) -> Reply:
    return lambda handler, body: handler.say(200, value)


@contextmanager
def serving(replies: Mapping[str, Reply]) -> Iterator[VlmServer]:
    with running(VlmServer(replies)) as server:
        yield server


def silent(handler: Handler, body: Body) -> None:
    time.sleep(3)


def dripping(status: int) -> Reply:
    """A blank at a time, for three seconds."""

    def drip(handler: Handler, body: Body) -> None:
        handler.send_response(status)
        handler.end_headers()
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    return drip


def completion(text: str, tops: Sequence[tuple[str, float]] | None = None) -> Body:
    """An answer of /v1/chat/completions: of one token, with the logarithms of the likeliest, if given."""

    def token(name: str, logprob: float) -> Body:
        return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

    logprobs = None
    if tops is not None:
        first = {**token(*tops[0]), "top_logprobs": [token(*top) for top in tops]} if tops else None
        logprobs = {"content": [first] if first else []}
    return {
        "id": "chatcmpl-4a2a",
        "object": "chat.completion",
        "created": 1_780_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "tool_calls": []},
                "logprobs": logprobs,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "usage": {"prompt_tokens": 1280, "total_tokens": 1281, "completion_tokens": 1},
        "prompt_logprobs": None,
    }


def decision(probabilities: Mapping[str, float]) -> Body:
    """An answer of /v1/systemone to a choice."""
    best = max(probabilities, key=probabilities.__getitem__)
    answer = {"type": "choice", "choice": best, "confidence": 0.5, "probabilities": dict(probabilities)}
    return {"model": MODEL, "answers": {"answer": answer}, "usage": {"input_tokens": 9, "output_tokens": 0}}


def pictures(body: Body) -> list[Image.Image]:
    """What the pictures of a chat request show, in their order."""
    return [
        opened(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
        for part in body["messages"][0]["content"]
        if part["type"] == "image_url"
    ]


def opened(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))


def watching(handler: Handler, body: Body) -> None:
    """As vLLM would: a model whose answer depends on the picture and the question.

    It gives logprobs if asked for them, else the answer as text, held to the choice if there is one.
    """
    shown = pictures(body)[0].convert("RGB")
    text = body["messages"][0]["content"][-1]["text"]
    seed = sum(shown.resize((1, 1)).getpixel((0, 0))) + len(text)
    tokens = ["Yes", "No", *string.ascii_uppercase[:18]]
    logits = [math.sin(seed + 3 * i) for i in range(20)]
    total = math.log(sum(map(math.exp, logits)))
    tops = sorted(((x, y - total) for x, y in zip(tokens, logits, strict=True)), key=lambda top: -top[1])
    if body.get("logprobs"):
        return handler.say(200, completion(tops[0][0], tops))
    choice = body["structured_outputs"]["choice"]
    return handler.say(200, completion(choice[seed % len(choice)]))
