"""The service under twice the load it can hold: what accepted requests take, who is told 429; then hostile requests.

A ViT-Ti/16 of random weights at 224 pixels behind the whole service on loopback, two replicas, JPEG tiles of 224
pixels, one a request. Capacity is what a closed loop of 24 clients gets. Then requests come at twice that rate,
whatever is answered (an open loop). The generator runs on the same cores, so capacity is that of what it leaves.
Last, 1,000 malformed requests of 17 kinds, while the memory of all of the service's processes is watched.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import psutil

from pathryoshka import config
from pathryoshka.serve.service import Service, running
from pathryoshka.serve.token import digest
from pathryoshka.student.encoder import build_student
from tests.bench.common import finish
from tests.exports import export, heads_of
from tests.malformed import KINDS, malformed, send
from tests.ports import free_port
from tests.serving import TOKEN, saved

GOAL_S = 3.0
"""Of the 99th percentile: `Limits.wait_s`, which is 2, and what one's own forward pass and the wire take."""
HEADERS = {"authorization": f"Bearer {TOKEN}"}
NUM_CLIENTS = 24
MALFORMED, WATCHED_FROM = 1000, 300


@dataclass(frozen=True)
class Phase:
    """What came back: status and seconds of each request, and how long the phase was."""

    answers: list[tuple[int, float]]
    seconds: float

    def accepted(self) -> list[float]:
        return [seconds for status, seconds in self.answers if status == 200]

    def rate(self) -> float:
        return len(self.accepted()) / self.seconds

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.accepted(), 100 * share))

    def statuses(self) -> dict[str, int]:
        return {str(k): n for k, n in sorted(collections.Counter(status for status, _ in self.answers).items())}


def tiles() -> list[bytes]:
    rng = np.random.default_rng(0)
    small = rng.integers(100, 256, (32, 28, 28, 3), dtype=np.uint8)
    return [saved(tile.repeat(8, 0).repeat(8, 1), "JPEG", quality=90) for tile in small]


async def ask(session: aiohttp.ClientSession, url: str, data: bytes, into: list[tuple[int, float]]) -> None:
    began = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/embed?width=64", data=data) as answer:
            await answer.read()
            status = answer.status
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    into.append((status, time.perf_counter() - began))


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers=HEADERS, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60)
    )


async def closed_loop(url: str, seconds: float) -> Phase:
    data, answers, end = tiles(), list[tuple[int, float]](), time.perf_counter() + seconds
    async with session() as http:

        async def client(number: int) -> None:
            at = number
            while time.perf_counter() < end:
                at += 1
                await ask(http, url, data[at % len(data)], answers)

        await asyncio.gather(*(client(number) for number in range(NUM_CLIENTS)))
    return Phase(answers, seconds)


async def open_loop(url: str, rate: float, seconds: float) -> Phase:
    """A request every 1 / rate seconds, none waiting for another."""
    data, answers, tasks = tiles(), list[tuple[int, float]](), []
    async with session() as http:
        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(http, url, data[number % len(data)], answers)))
        sent = time.perf_counter() - began
        await asyncio.gather(*tasks)
    return Phase(answers, sent)


def service_bytes() -> int:
    """Of what Serve runs below this process: controller, proxy, doors, students; memory that is theirs alone."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if "Serve" in process.name() or "Proxy" in process.name() or "ray::" in " ".join(process.cmdline()):
                total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def hostile(url: str) -> tuple[float, dict[str, int]]:
    """(bytes a request that memory grows by once all kinds have been seen, wrong statuses by kind)."""
    seen, wrong = [], collections.Counter[str]()
    for number, bad in enumerate(malformed(MALFORMED)):
        status, _ = send(url, bad)
        no_index = bad.path.startswith(("/v1/search", "/v1/slides"))
        if status not in bad.right | ({404} if no_index else set()):
            wrong[f"{bad.kind} {status}"] += 1
        if number >= WATCHED_FROM and number % len(KINDS) == 0:
            seen.append((number, service_bytes()))
    print("MiB after", ", ".join(f"{number}: {size / 2**20:.0f}" for number, size in seen[::6]), flush=True)
    slope = statistics.linear_regression(*zip(*seen, strict=True)).slope
    return slope, dict(wrong)


def export_tiny(where: Path) -> None:
    cfg = config.Student(model="vit_tiny_patch16_224", widths=(16, 64, 192))
    student = build_student(cfg, 224)
    run = config.Run(name="bench", student=cfg, export=config.Export(licence="mit"))
    golden = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    export(where, student=student, heads=heads_of(student, cfg), run=run, golden=golden, scores=None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["RAY_TMPDIR"] = name
        export_tiny(Path(name) / "export")
        service = Service(model=str(Path(name) / "export"), port=free_port(), replicas=2, token_digest=digest(TOKEN))
        with running(service):
            asyncio.run(closed_loop(service.url, args.seconds / 2))  # warm
            ratios, facts = [], []
            for _ in range(args.repeats):
                capacity = asyncio.run(closed_loop(service.url, args.seconds))
                twice = asyncio.run(open_loop(service.url, 2 * capacity.rate(), args.seconds))
                ratios.append(twice.percentile(0.99))
                refused = [seconds for status, seconds in twice.answers if status == 429] or [0.0]
                facts.append({
                    "capacity": round(capacity.rate(), 1), "capacity_p50": round(capacity.percentile(0.5), 3),
                    "sent": round(len(twice.answers) / twice.seconds, 1), "accepted": round(twice.rate(), 1),
                    "p50": round(twice.percentile(0.5), 3), "p99": round(twice.percentile(0.99), 3),
                    "refused_p99": round(float(np.percentile(refused, 99)), 3),
                    "statuses": twice.statuses(),
                })  # fmt: skip
                print(facts[-1], flush=True)
                time.sleep(2)
            slope, wrong = hostile(service.url)
            print(f"malformed: wrong {wrong}, {slope / 1024:.2f} KiB a request", flush=True)
            still = asyncio.run(closed_loop(service.url, 5))
            print(f"after them: {still.rate():.1f} a second, {still.statuses()}", flush=True)
    if wrong:
        raise SystemExit(f"malformed requests got wrong answers: {wrong}")
    finish("serve", ratios, GOAL_S, below=True, phases=facts, malformed_bytes_a_request=round(slope), wrong=wrong)


if __name__ == "__main__":
    main()
