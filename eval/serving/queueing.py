"""A queue before one engine with continuous batching, simulated: requests arrive at random, steps take what a model says.

A step takes one token of every answer under way and fills the rest of its tokens with prompts, in order of arrival; a prompt
may be cut into chunks.  A request is let in when the cache can hold all of it, so that none is thrown out later.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WARM = 0.1  # of the requests come before the queue has its usual length, and are not counted


@dataclass(frozen=True)
class Work:
    """What one step computes.

    Attributes:
        pictures: that are encoded; chunks: (new tokens, tokens before them) of every part of a prompt;
        decoding: answers that get a token; held: cached tokens that these read; finished: prompts that end in it.
    """

    pictures: int
    chunks: tuple[tuple[int, int], ...]
    decoding: int
    held: int
    finished: int


@dataclass(frozen=True)
class Engine:
    """One GPU.

    Attributes:
        step_ms: of a step's work; batched: tokens of a step at most; cache: tokens that its cache holds; seqs: requests inside.
    """

    step_ms: Callable[[Work], float]
    batched: int
    cache: int
    seqs: int


def poisson(rate: float, count: int, seed: int = 0) -> np.ndarray:
    """Moments in ms of `count` arrivals at `rate` per second."""
    return np.random.default_rng(seed).exponential(1e3 / rate, count).cumsum()


def simulate(engine: Engine, arrivals: Sequence[float], prompt: int, new_tokens: int) -> np.ndarray:
    """ms from arrival to first token of every request, all of one length; inf where the cache cannot hold one."""
    need = prompt + new_tokens
    out = np.full(len(arrivals), np.inf)
    if need > engine.cache:
        return out
    now, coming = 0.0, 0
    waiting: deque[list[int]] = deque()  # [number, tokens of its prompt that are done]
    inside: list[list[int]] = []  # [number, tokens of its answer that are done]
    begun = 0  # prompts in parts, at the head of `waiting`
    while coming < len(arrivals) or waiting or inside:
        if not waiting and not inside:
            now = max(now, arrivals[coming])
        while coming < len(arrivals) and arrivals[coming] <= now:
            waiting.append([coming, 0])
            coming += 1
        room, chunks, pictures, done = engine.batched - len(inside), [], 0, []
        for request in list(waiting):
            fresh = request[1] == 0
            held = len(inside) + begun + len(done) + fresh  # requests, this one among them
            full = held > engine.seqs or held * need > engine.cache
            if room <= 0 or (fresh and full):
                break
            part = min(room, prompt - request[1])
            chunks.append((part, request[1]))
            pictures, begun, room = pictures + fresh, begun + fresh, room - part
            request[1] += part
            if request[1] == prompt:
                done.append(waiting.popleft())
                begun -= 1
        read = sum(prompt + answered for _, answered in inside)
        now += engine.step_ms(Work(pictures, tuple(chunks), len(inside), read, len(done)))
        inside = [[number, answered + 1] for number, answered in inside if answered + 1 < new_tokens]
        for number, _ in done:
            out[number] = now - arrivals[number]
            if new_tokens > 1:
                inside.append([number, 1])
    return out


def p95(engine: Engine, rate: float, prompt: int, new_tokens: int, count: int, seed: int = 0) -> float:
    """ms to the first token that 95 % of requests do not exceed, at `rate` requests per second."""
    found = simulate(engine, poisson(rate, count, seed), prompt, new_tokens)
    return float(np.percentile(found[int(WARM * count) :], 95))


def engines(
    engine: Engine, rate: float, limit_ms: float, prompt: int, new_tokens: int, count: int = 3000
) -> int | None:
    """The fewest engines that share `rate` evenly with 95 % of first tokens within the limit; None where no number does."""

    def enough(number: int) -> bool:
        return p95(engine, rate / number, prompt, new_tokens, count) <= limit_ms

    if simulate(engine, [0.0], prompt, new_tokens)[0] > limit_ms:
        return None
    high = 1
    while not enough(high):
        high *= 2
        if rate / high < 1e-3:  # so rare that requests do not meet
            return None
    low = high // 2  # not enough, or none
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def most(engine: Engine, limit_ms: float, prompt: int, new_tokens: int, count: int = 3000) -> float:
    """Requests per second, within 2 %, up to which one engine keeps the limit; 0 where one request alone breaks it."""
    if simulate(engine, [0.0], prompt, new_tokens)[0] > limit_ms:
        return 0.0
    low, high = 1e-3, 1.0
    while p95(engine, high, prompt, new_tokens, count) <= limit_ms:
        low, high = high, 2 * high
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if p95(engine, middle, prompt, new_tokens, count) <= limit_ms else (low, middle)
    return low
