"""prototype"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kedro_aat.search.policy import Candidate, Epoch, EpochResult, Problem, SearchState, Stop
from kedro_aat.validated import Settings


class Trial(Settings):
    start_u: float
    start: int | None
    u: float
    results: tuple[EpochResult, ...] = ()
    accepted: bool = False
    resumed: int = 0


class FrontierState(SearchState):
    problem: Problem
    num_epochs: int = 0
    phase: Literal["first", "search", "polish"] = "first"
    first: EpochResult | None = None
    trials: tuple[Trial, ...] = ()
    current: Trial | None = None
    max_step: float = 0.5
    polished: Candidate | None = None
    polish: tuple[tuple[float, float, float], ...] = ()
    polish_u: float = 0.0
    polish_epochs: int = 0

    @property
    def best(self) -> Candidate | None:
        return self.polished or super().best

    @property
    def needed(self) -> frozenset[int]:
        failed = {max(t.results, key=lambda r: r.margin).checkpoint for t in self.trials if not t.accepted}
        return super().needed | failed


class Frontier(Settings):
    kind: Literal["frontier"] = "frontier"
    maximal_total_epochs: int = 60
    acceptance_z: float = 0.5
    polish_share: float = 0.4
    epochs_per_rate: int = 4
    num_path_steps: int = 8
    reserve: float = 0.05
    pool: int = 5
    step0: float = 0.5
    stepmax: float = 2.0
    noise: float = 0.35
    power: float = 0.7
    mingain: float = 0.01
    plr0: float = 0.5
    plr1: float = 0.02
    damp: float = 1.0

    def initial(self, problem: Problem) -> FrontierState:
        return FrontierState(problem=problem, max_step=self.step0)

    def ask(self, state):
        return self._decide(state)[1]

    def load(self, state):
        return FrontierState.model_validate_json(state)

    def shifted(self, seen):
        return seen.margin - self.acceptance_z * (seen.standard_error or 0.0)

    def tell(self, state, seen):
        s, move = self._decide(state)
        ch: dict[str, Any] = {"num_epochs": s.num_epochs + seen.trained}
        m = self.shifted(seen)
        cand = Candidate(checkpoint=seen.checkpoint, requested_rate=seen.requested_rate, achieved_rate=seen.achieved_rate, margin=m)
        unit = s.problem.tolerated_drop or 0.01
        if s.phase == "first":
            ch |= {"first": seen, "phase": "search"}
            if seen.fully_compressed and m >= 0:
                ch["candidates"] = (cand,)
        elif s.phase == "search":
            t = s.current
            ok = seen.fully_compressed and m >= 0
            t = upd(t, results=(*t.results, seen), accepted=ok)
            ch["current"] = t
            if ok:
                ch["candidates"] = (*s.candidates, cand)
        else:
            obs = (*s.polish, (s.polish_u, m / unit, move.lr_scale))
            ch["polish"] = obs
            est = self._pooled(s, obs, s.polish_u)
            if seen.fully_compressed and est >= 0 and m >= 0:
                ch["polished"] = upd(cand, margin=min(m, est * unit))
        return upd(s, **ch)

    def _pooled(self, s, obs, u):
        last = obs[-self.pool:]
        sl = self._slope(s)
        return sum(y - sl * (u - v) for v, y, _ in last) / len(last)

    def _slope(self, s):
        g, ss, post = self._posterior(s)
        return 1.2 * float((post.sum(0) * ss).sum())

    def _posterior(self, s):
        unit = s.problem.tolerated_drop or 0.01
        umax = u_of(s.problem.maximal_rate)
        g = np.linspace(0, umax + 1, 150)[:, None, None]
        ss = np.geomspace(0.7, 9, 8)[None, :, None]
        pts = []
        if s.first is not None:
            pts.append((u_of(s.problem.initial_rate), self.shifted(s.first), s.first.standard_error or 0))
        for t in s.trials:
            r = max(t.results, key=lambda r: r.margin)
            pts.append((t.u, self.shifted(r), r.standard_error or 0))
        pts += [(u, y * unit, 0.0) for u, y, _ in s.polish]
        a = np.array(pts)
        pred = np.maximum(1.2 - 1.2 * np.exp(np.minimum(ss * (a[:, 0] - g), 20)), -3)
        y = np.clip(a[:, 1] / unit, -3, None)
        var = (a[:, 2] / unit) ** 2 + self.noise**2
        ll = (-1.5 * np.log1p((y - pred) ** 2 / var / 2)).sum(-1)
        p = np.exp(ll - ll.max())
        return g[:, 0, 0], ss[0, :, 0], p / p.sum()

    def _decide(self, s):
        if s.phase == "first":
            return s, Epoch(train=False, new_optimizer=True)
        if s.num_epochs >= self.maximal_total_epochs:
            return s, s.stop("all epochs")
        if s.phase == "polish":
            return self._polish(s)
        t = s.current
        if t is not None:
            if not self._over(s, t):
                n = len(t.results)
                return s, Epoch(lr_scale=self._lr(n))
            step = s.max_step
            if t.accepted:
                step = min(step * 2, self.stepmax) if len(t.results) == 1 else self.step0
            else:
                step = self.step0
            s = upd(s, trials=(*s.trials, t), current=None, max_step=step)
        left = self.maximal_total_epochs - s.num_epochs
        if left <= self.polish_share * self.maximal_total_epochs:
            return self._start_polish(s)
        u, gain = self._target(s)
        if gain < self.mingain:
            return self._start_polish(s)
        best = s.best
        ub = u_of(best.requested_rate) if best else u_of(s.problem.initial_rate)
        start, su = (best.checkpoint, ub) if best else (s.first.checkpoint, u_of(s.problem.initial_rate))
        failed = [x for x in s.trials if not x.accepted and abs(x.u - u) <= 0.06]
        if failed:
            f = min(failed, key=lambda x: abs(x.u - u))
            start, su = max(f.results, key=lambda r: r.margin).checkpoint, f.u
        t = Trial(start_u=su, start=start, u=u)
        path = self._path(s, su, u)
        return upd(s, current=t), Epoch(rate_path=path, lr_scale=1.0, start_from=start, new_optimizer=True)

    def _path(self, s, su, u):
        n = self.num_path_steps
        lo, hi = s.problem.minimal_rate, s.problem.maximal_rate
        return tuple(min(max(-math.expm1(-(su + (u - su) * (j + 1) / n)), lo), hi) for j in range(n))

    def _lr(self, n):
        return max(0.15, 0.15 ** (n / (self.epochs_per_rate - 1)))

    def _over(self, s, t):
        n = len(t.results)
        if t.accepted or t.results[-1].early_stop:
            return True
        if n < 2:
            return False
        unit = s.problem.tolerated_drop or 0.01
        y = [self.shifted(r) / unit for r in t.results]
        left = self.epochs_per_rate + 2 - n
        if left <= 0:
            return True
        d = max(y[-1] - y[-2], 0)
        # recovery slows down: geometric with ratio .6
        reach = y[-1] + d * sum(0.7**k for k in range(1, left + 1))
        return reach < -0.1 if n < self.epochs_per_rate else reach < 0

    def _target(self, s):
        g, ss, p = self._posterior(s)
        pu = p.sum(1)
        surv = 1 - np.cumsum(pu) + pu / 2
        best = s.best
        umax = u_of(s.problem.maximal_rate)
        umin = u_of(s.problem.minimal_rate)
        base = u_of(best.requested_rate) if best else umin - 0.05
        cand = np.linspace(umin, umax, 200)
        P = np.interp(cand, g, surv)
        gain = (cand - base) * P**self.power
        if best:
            gain = np.where(cand <= base + s.max_step + 1e-9, gain, -1)
        i = int(gain.argmax())
        return float(cand[i]), float((cand[i] - base) * P[i])

    def _start_polish(self, s):
        best = s.best
        if best is None:
            return s, s.stop("nothing")  # TODO use the rest
        left = self.maximal_total_epochs - s.num_epochs
        u = u_of(best.requested_rate)
        s = upd(s, phase="polish", polish_u=u, polish_epochs=left)
        return s, Epoch(rate_path=(best.requested_rate,), lr_scale=self.plr0, start_from=best.checkpoint, new_optimizer=True)

    def _polish(self, s):
        n = len(s.polish)
        lr = self.plr0 * (self.plr1 / self.plr0) ** (n / max(1, s.polish_epochs - 1))
        est = self._pooled(s, s.polish, s.polish_u) - self.reserve
        sl = self._slope(s)
        u = s.polish_u + max(-0.15, min(0.1, self.damp * est / sl))
        u = min(max(u, u_of(s.problem.minimal_rate)), u_of(s.problem.maximal_rate))
        left = self.maximal_total_epochs - s.num_epochs
        return upd(s, polish_u=u), Epoch(rate_path=self._path(s, s.polish_u, u), lr_scale=lr)


def u_of(r):
    return -math.log1p(-r)


def upd(x, **ch):
    return type(x).model_construct(**{**x.__dict__, **ch})
