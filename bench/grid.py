"""Problems × providers: one row each, with error, times, memory and share of the ceilings, or how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from bench import problems
from bench.networks import FORMATS, Network
from bench.trial import Variant
from bench.workers import job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.problems import Named
    from bench.providers import Provider, Workload
    from bench.stand import Device
    from bench.workers import Job, Row

    Ceilings: TypeAlias = dict[str, float | None]

ENDED = ("out of memory", "over budget")  # how a curve ends
COMPILING = 240.0  # seconds that a job may take beside its calls
HOPELESS = 1.25  # times the limit that a product takes at its measured ceiling: it is not begun
MIB = 1 << 20


class Executor(Protocol):
    """Where jobs are done: ``hold`` keeps the inputs for those that follow."""

    def hold(self, task: Job) -> list[Row]: ...
    def do(self, task: Job) -> list[Row]: ...
    def end(self) -> None: ...


@dataclass
class Grid:
    """A run: its place, settings and ceilings, and at which size each provider's curve has ended."""

    stand: Device
    place: Executor
    seed: int
    limit_s: float
    rounds: int
    ceilings: Ceilings
    tell: Callable[[str], None] = lambda text: None
    _ends: dict[tuple[Any, str], tuple[int, str]] = field(default_factory=dict)

    def rows(self, name: str, entrants: Sequence[Provider]) -> list[Row]:
        """All rows of a problem, in the order of its providers."""
        problem = problems.problem(name)
        rows = {each.name: self._blank(name, problem, each) for each in entrants}
        open_to = [each for each in entrants if not self._settled(rows[each.name], name, problem, each)]
        if open_to:
            held, right = self._prepare(name, problem)
            for each in open_to:
                if held["status"] == "ok":
                    self._check(rows, name, problem, each, right)
                else:
                    _end(rows[each.name], held["status"], f"the inputs: {held['why']}")
        alive = [each for each in open_to if rows[each.name]["status"] == "ok"]
        if alive:
            self._race(rows, name, problem, alive)
        for each in open_to:
            if rows[each.name]["status"] in ENDED:
                self._ends[self._curve(name), each.name] = problem_size(problem), rows[each.name]["status"]
        return [_tidy(row) for row in rows.values()]

    def _blank(self, name: str, problem: Named, provider: Provider) -> Row:
        row = {"problem": name} | described(problem) | {"provider": provider.name, "ours": provider.ours}
        row |= {"variant": "", "status": "ok", "why": "", "error": None, "warm_ms": None, "cold_ms": None, "rounds": 0}
        row |= {"ratio": None, "peak_extra_mib": None, "share": None, "bound": ""}
        row |= {"graph_ms": None, "eager_ms": None} if self.stand.on_gpu else {}
        return row | ({"share_of_backbone": None} if provider.follows else {})

    def _curve(self, name: str) -> problems.Label:
        return problems.parse(name).curve()

    def _settled(self, row: Row, name: str, problem: Named, provider: Provider) -> bool:
        """Whether a row is known without trying: what cannot be done, what has ended before, what is hopeless."""
        if reasons := provider.reasons(problem, self.stand):
            return _end(row, "unsupported", "; ".join(reasons))
        L, status = self._ends.get((self._curve(name), provider.name), (None, ""))
        if L is not None and problem_size(problem) >= L:
            return _end(row, status, f"already so at L={L:,}")
        work = provider.work(problem, self.stand)
        if work and work.held > (free := self.stand.free_bytes()):
            why = f"predicted: it would hold {in_bytes(work.held)} and {in_bytes(free)} are free"
            return _end(row, "out of memory", why)
        seconds = seconds_at(self.ceilings["product_gflop_s"], work.flops) if work else None
        if work and seconds is not None and not self.stand.on_gpu and seconds > HOPELESS * self.limit_s:
            why = f"its {work.flops / 1e12:,.3g} TFLOP take {seconds:,.0f} s at the product's measured ceiling"
            return _end(row, "over budget", f"predicted: {why}")
        return False

    def _prepare(self, name: str, problem: Named) -> tuple[Row, Any]:
        """Inputs drawn where all jobs find them, and the truth in float64."""
        self.tell(f"{name}: inputs and truth")
        given = {"problem": problem, "seed": self.seed}
        held = self.place.hold(job("bench.trial:hold", name, COMPILING, **given))[0]
        if held["status"] != "ok":
            return held, None
        found = self.place.do(job("bench.trial:truth", name, COMPILING, **given))[0]
        return found, found.get("right")

    def _check(self, rows: dict[str, Row], name: str, problem: Named, provider: Provider, right: Any) -> None:
        """The fastest variant that is right, or how the first one that is not ended."""
        self.tell(f"{name}: {provider.name}")
        row, best = rows[provider.name], None
        wanted = rows[provider.follows]["variant"] if provider.follows in rows else None
        for at in range(len(FORMATS) if wanted else 1000):
            given = {"problem": problem, "provider": provider, "at": at, "seed": self.seed, "right": right}
            limit = COMPILING + 4 * self.limit_s
            task = job("bench.trial:check", f"{name}: {provider.name}", limit, limit_s=self.limit_s, **given)
            found = self.place.do(task)[0]
            if found["status"] == "no more":
                break
            if wanted and found.get("variant") != wanted:
                continue
            if best is None or found.get("seconds", np.inf) < best.get("seconds", np.inf):
                best = found | {"at": at}
            if found["status"] == "over budget":
                break  # the others would take as long
        best = best or {"status": "failed", "why": "no variant was built"}
        row |= {"variant": best.get("variant", ""), "status": best["status"], "why": best.get("why", "")}
        row |= {"error": best.get("error"), "peak_extra_mib": mib(best.get("peak"))}
        row |= {"entrant": Variant(provider, best.get("at", 0), best.get("seconds", 0.0))}
        if best["status"] == "over budget" and "call" in row["why"]:
            row["why"] = f"a call took longer than {self.limit_s:g} s"

    def _race(self, rows: dict[str, Row], name: str, problem: Named, alive: Sequence[Provider]) -> None:
        """Fill in times, ratios and shares."""
        self.tell(f"{name}: timing {len(alive)} providers in rounds")
        entrants = [rows[each.name]["entrant"] for each in alive]
        took = sum((2 * each.rounds(self.rounds) + 2) * each.seconds for each in entrants)
        given = {"problem": problem, "entrants": entrants, "seed": self.seed, "most": self.rounds}
        found = self.place.do(job("bench.trial:time_interleaved", name, 2 * COMPILING + 3 * took, **given))
        if "provider" not in found[0]:  # the interleaved timing itself ended
            for each in alive:
                _end(rows[each.name], found[0]["status"], f"while being timed: {found[0]['why']}")
            return
        times = {each["provider"]: each for each in found}
        base = next((each for each in ("auto", "polish and fuse") if times.get(each, {}).get("warm")), None)
        for each in alive:
            mine, row = times[each.name], rows[each.name]
            if mine["status"] != "ok":
                _end(row, mine["status"], f"while being timed: {mine['why']}")
                continue
            row |= {"rounds": len(mine["warm"]), "warm_ms": in_ms(mine["warm"]), "cold_ms": in_ms(mine["cold"])}
            for key in ("eager", "graph"):
                if key in mine:
                    row[f"{key}_ms"] = in_ms([mine[key]])
            if base and each.name != base:
                row["ratio"] = ratios(mine["warm"], times[base]["warm"])
            if each.follows in times:
                row["share_of_backbone"] = ratios(mine["warm"], times[each.follows]["warm"])
            row |= share(each.work(problem, self.stand), self.ceilings, row["warm_ms"]["p50"])


def described(problem: Named) -> Row:
    """The sizes and kinds that a row says its problem has."""
    if isinstance(problem, Network):
        size = problem.size
        kinds = {"dtype": "float32", "layout": "", "values": "rand", "affinity": ""}
        return {"B": problem.B, "K": problem.K, "C": 3, "H": size, "W": size, "L": size * size} | kinds
    keys = ("B", "K", "C", "H", "W", "L", "dtype", "layout", "values", "affinity")
    return {key: getattr(problem, key) for key in keys}


def problem_size(problem: Named) -> int:
    return int(described(problem)["L"])


def _end(row: Row, status: str, why: str) -> bool:
    row |= {"status": status, "why": why}
    return True


def _tidy(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "entrant"}


def quantiles(values: Any, digits: int) -> dict[str, float] | None:
    """p20, p50 and p80; None of nothing."""
    if not len(values):
        return None
    return {f"p{each}": round(float(np.percentile(values, each)), digits) for each in (20, 50, 80)}


def in_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    return quantiles(np.array(seconds) * 1e3, 4)


def ratios(mine: Sequence[float], base: Sequence[float]) -> dict[str, float] | None:
    """Of the rounds that both took part in."""
    both = min(len(mine), len(base))
    return quantiles(np.array(mine[:both]) / np.array(base[:both]), 5)


def seconds_at(ceiling: float | None, amount: float) -> float | None:
    """Return how long ``amount`` takes at a ceiling in 10⁹ per second; None if the ceiling could not be measured."""
    return amount / ceiling / 1e9 if ceiling else None


def share(work: Workload | None, ceilings: Ceilings, p50_ms: float) -> Row:
    """Return the roofline's time of the work over the measured time, and which ceiling binds; None if unknown."""
    product = seconds_at(ceilings["product_gflop_s"], work.flops) if work else None
    copy = seconds_at(ceilings["copy_gb_s"], work.traffic) if work else None
    if product is None or copy is None or not p50_ms:
        return {"share": None, "bound": ""}
    return {"share": round(max(product, copy) * 1e3 / p50_ms, 4), "bound": "product" if product > copy else "copy"}


def mib(count: int | None) -> float | None:
    return None if count is None else round(count / MIB, 2)


def in_bytes(count: float) -> str:
    """A size as people say it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB"
