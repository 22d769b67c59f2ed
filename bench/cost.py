"""Cost: the price of a million orders on AWS Lambda, computed from the measured durations."""

import math
from dataclasses import dataclass

from bench.cold import WITH, WITHOUT
from bench.contenders import OURS
from bench.figures import Json
from bench.report import Table
from bench.run import Run

TITLE = "Cost"
NEEDS = ("warm", "cold", "trips")
MEMORY = (128, 256, 512, 1024)
"""Megabytes."""
ONE_CPU_AT = 1_769
"""Megabytes at which a function has one vCPU; its share is proportional below.
https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html"""
PER_GB_SECOND = {"arm64": 0.0000133334, "x86_64": 0.0000166667}
PER_MILLION_REQUESTS = 0.20
PRICES = "us-east-1, first tier, without the free tier, https://aws.amazon.com/lambda/pricing/, as of 2026"
COLD_SHARE = 0.01
NETWORK_MS = 0.5
"""A round trip between a function and a database in the same region."""
ORDERS = 1_000_000


@dataclass(frozen=True)
class Durations:
    """Milliseconds of one create, as measured with a whole CPU."""

    cpu: float
    wait: float
    """Waiting for the database, network included: independent of the CPU share."""
    cold_import: float
    cold_call: float
    """From the end of the import to the first 201, plus the interpreter's start."""

    def warm_billed(self, memory: int) -> int:
        return math.ceil(self.cpu * cpu_stretch(memory) + self.wait)

    def cold_billed(self, memory: int) -> int:
        """The import runs with a whole CPU for every memory size, and is billed; the call has its share."""
        return math.ceil(self.cold_import + self.cold_call * cpu_stretch(memory))


def cpu_stretch(memory: int) -> float:
    """How many times longer the same work takes with that memory's share of a CPU."""
    return max(1.0, ONE_CPU_AT / memory)


def gb_seconds(durations: Durations, memory: int) -> float:
    """Of a million orders."""
    warm, cold = durations.warm_billed(memory), durations.cold_billed(memory)
    return ORDERS * memory / 1024 * ((1 - COLD_SHARE) * warm + COLD_SHARE * cold) / 1000


def dollars(durations: Durations, memory: int, architecture: str) -> float:
    """Of a million orders, requests included."""
    requests = PER_MILLION_REQUESTS * ORDERS / 1_000_000
    return gb_seconds(durations, memory) * PER_GB_SECOND[architecture] + requests


def measure(run: Run) -> Json:
    """Each contender's durations and costs, from the results of the other sections."""
    costs = {}
    for key, warm in run.results["warm"]["contenders"].items():
        durations = _durations(key, run.results)
        if durations is not None:
            costs[key] = {
                "name": warm["name"],
                "durations_ms": vars(durations),
                "memory": {
                    str(memory): {
                        "gb_seconds": gb_seconds(durations, memory),
                        "dollars": {name: dollars(durations, memory, name) for name in PER_GB_SECOND},
                    }
                    for memory in MEMORY
                },
            }
    return {"contenders": costs}


def _durations(key: str, results: Json) -> Durations | None:
    """This project with bytecode, the others without; None for a contender without a cold start."""
    cold = results["cold"]["starts"].get(f"{key} {WITH if key == OURS.key else WITHOUT}")
    if cold is None:
        return None
    create = results["warm"]["contenders"][key]["operations"]["create"]
    trips = results["trips"]["contenders"][key]["operations"]["create"]["trips"]
    return Durations(
        cpu=create["cpu_ms"],
        wait=create["median_ms"] - create["cpu_ms"] + trips * NETWORK_MS,
        cold_import=cold["import_ms"],
        cold_call=cold["median_ms"] - cold["import_ms"],
    )


def tables(results: Json) -> list[Table]:
    contenders = results["contenders"].values()
    return [
        Table(
            "Cost: dollars for a million orders on Lambda, arm64 / x86_64 (GB-seconds)",
            ["contender", "create: CPU + wait, ms", *[f"{memory} MB" for memory in MEMORY]],
            [
                [
                    contender["name"],
                    f"{contender['durations_ms']['cpu']:.2f} + {contender['durations_ms']['wait']:.2f}",
                    *[_cost(contender["memory"][str(memory)]) for memory in MEMORY],
                ]
                for contender in contenders
            ],
            _assumptions(),
        )
    ]


def _assumptions() -> list[str]:
    prices = ", ".join(f"${price:.10f} a GB-second on {name}" for name, price in PER_GB_SECOND.items())
    return [
        "Assumptions: the CPU time of a warm create was measured with a whole core. With less memory it "
        f"takes {ONE_CPU_AT:,} / memory times as long. The wait for the database does not: the rest of the "
        f"measured median, and {NETWORK_MS:g} ms of network for each counted round trip. "
        f"{COLD_SHARE:.0%} of the requests start cold. Their import runs with a whole CPU and is billed, "
        "their first call with its share. This project starts with its bytecode, the others without, as a "
        "plain zip ships them. Durations are billed in whole milliseconds.",
        f"Prices: {prices}, ${PER_MILLION_REQUESTS:.2f} a million requests; {PRICES}. "
        "API Gateway and the database are not included.",
    ]


def _cost(cost: Json) -> str:
    prices = " / ".join(f"${price:.2f}" for price in cost["dollars"].values())
    return f"{prices} ({cost['gb_seconds']:,.0f})"
