"""Scaling laws: how a model's loss falls with its parameters and its training tokens, and what that says of a budget.

Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models" (arXiv:2203.15556), approach 3: of N parameters
trained on D tokens the loss is L(N, D) = E + A / N^alpha + B / D^beta. Besiroglu et al. 2024 (arXiv:2404.10102) found
that the published fit had stopped before its minimum: it averaged the objective over the runs, which left its steps
smaller than the optimizer's tolerance. So here the fit starts from a grid, is polished until it no longer moves, and
rounds nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Estimate, Floats

HUBER = 1e-3  # on the log of the loss (Hoffmann et al. 2022, section 3.3)
DRAWS = 500
_UNKNOWNS = 5
_GRID = [step / 10 for step in range(1, 13)]  # of exponents, for a start
_EXPONENTS = (1e-3, 5.0)  # a fit that ends at one of these has not been told by its runs
_NEAR = 1e-6  # an exponent to its end, or a term of the law to nothing
_TOLERANCE = 1e-12
_SAME_COMPUTE = 1.1  # times the least of a group


@dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2).

    Attributes:
        E: The loss that no model of this family goes below, in the unit of the losses.
        A: Of the term of the parameters.
        alpha: How fast more parameters lower the loss.
        B: Of the term of the tokens.
        beta: How fast more tokens lower the loss.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: "ArrayLike", tokens: "ArrayLike") -> "Floats":
        """Returns the loss of models of so many parameters after so many tokens."""
        n, d = np.asarray(parameters, float), np.asarray(tokens, float)
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    @property
    def exponent(self) -> float:
        """The a of N_opt ~ C^a: how the best model's size grows with compute (equation 4)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Returns the parameters and tokens of the lowest loss for a compute of 6 N D (equation 4)."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = scale * (flops / 6) ** self.exponent
        return parameters, flops / 6 / parameters

    def cheapest(self, loss: float, served: float) -> tuple[float, float]:
        """Returns the parameters and tokens that reach a loss with the least compute of training and serving.

        6 N D for training and 2 N for each token served (Sardana et al. 2024, arXiv:2401.00448, equation 2): the more
        is served, the smaller and the longer trained is the best model.

        Args:
            loss: To be reached, above E.
            served: Tokens read and written over the model's life.

        Raises:
            ValueError: No model reaches the loss.
        """
        from scipy.optimize import minimize_scalar

        if loss <= self.E:
            raise ValueError(f"the law's lowest loss is {self.E:.4g}, so that none reaches {loss:.4g}")
        smallest = math.log(self.A / (loss - self.E)) / self.alpha  # log N at which no number of tokens would suffice

        def tokens(log_n: float) -> float:
            rest = loss - self.E - self.A * math.exp(-self.alpha * log_n)
            return (self.B / rest) ** (1 / self.beta)

        def log_flops(above: float) -> float:
            log_n = smallest + math.exp(above)
            return log_n + math.log(6 * tokens(log_n) + 2 * served)

        found: Any = minimize_scalar(log_flops, bounds=(-12.0, 3.0), method="bounded", options={"xatol": 1e-10})
        log_n = smallest + math.exp(found.x)
        return math.exp(log_n), tokens(log_n)


@dataclass(frozen=True)
class Fit:
    """A law, and how sure it is.

    Attributes:
        law: At the minimum.
        objective: The sum of the Huber losses there.
        residuals: Logs of the losses less those of the law, float64 ``[runs]``.
        resampled: The law of each resample of the runs.
    """

    law: ParametricLaw
    objective: float
    residuals: "Floats"
    resampled: tuple[ParametricLaw, ...]

    def estimate(self, figure: "Callable[[ParametricLaw], float]") -> Estimate:
        """Returns a figure of the law with its 95% interval: percentiles over the resamples."""
        drawn = np.array([figure(law) for law in self.resampled])
        runs = len(self.residuals)
        if not len(drawn):
            return Estimate(figure(self.law), None, None, None, runs, runs)
        low, high = np.quantile(drawn, (0.025, 0.975))
        return Estimate(figure(self.law), float(drawn.std(ddof=1)), float(low), float(high), runs, runs)

    def predict(self, parameters: float, tokens: float, *, seed: int = 0) -> Estimate:
        """Returns the loss of a further run, between ends where 95% of such runs should lie if the law goes on to hold.

        Each resample's law gives a loss, and the scatter of the runs about the law comes on top: residuals drawn anew,
        wider for the five unknowns that were fitted to them.
        """
        runs = len(self.residuals)
        scatter = self.residuals * math.sqrt(runs / (runs - _UNKNOWNS))
        means = np.array([law.loss(parameters, tokens) for law in self.resampled])
        drawn = means[:, None] * np.exp(np.random.default_rng(seed).choice(scatter, (len(means), 20)))
        low, high = np.quantile(drawn, (0.025, 0.975))
        value = float(self.law.loss(parameters, tokens))
        return Estimate(value, float(drawn.std(ddof=1)), float(low), float(high), runs, runs)


def fit(
    parameters: "ArrayLike",
    tokens: "ArrayLike",
    losses: "ArrayLike",
    *,
    delta: float | None = HUBER,
    draws: int = DRAWS,
    seed: int = 0,
) -> Fit:
    """Fits the law by the Huber loss on log losses (Hoffmann et al. 2022, equation 3).

    Args:
        parameters: Of each run, ``[runs]``.
        tokens: Of each run, ``[runs]``.
        losses: Of each run on held-out text, ``[runs]``.
        delta: Where the Huber loss goes from squares to absolute values; None for squares alone.
        draws: Resamples of the runs, each fitted anew, for the intervals; 0 for none.
        seed: Of the resamples.

    Raises:
        ValueError: Fewer than six runs, a figure that is not above zero, too few sizes or lengths among them, or losses
            that do not fall with one of the two.
    """
    n, d, y = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses))
    for name, values in (("parameters", n), ("tokens", d), ("losses", y)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be above zero and finite")
    if len(y) <= _UNKNOWNS:
        raise ValueError(f"a law of five unknowns needs six runs or more, and there are {len(y)}")
    if not _determined(n, d):
        raise ValueError("three sizes and three numbers of tokens are needed, or an exponent is not determined")
    law, objective = _minimum(n, d, y, delta, _start(n, d, y))
    for name, exponent, term in (
        ("parameters", law.alpha, law.A * n**-law.alpha),
        ("tokens", law.beta, law.B * d**-law.beta),
    ):
        at_end = min(abs(exponent / end - 1) for end in _EXPONENTS) < _NEAR
        if at_end or (term / y).max() < _NEAR:
            raise ValueError(f"the losses do not say how they fall with {name}: no exponent fits best")
    laws: list[ParametricLaw] = []
    rng = np.random.default_rng(seed)
    while len(laws) < draws:
        rows = rng.integers(0, len(y), len(y))
        if _determined(n[rows], d[rows]):
            laws.append(_minimum(n[rows], d[rows], y[rows], delta, law)[0])
    return Fit(law, objective, np.log(y / law.loss(n, d)), tuple(laws))


def _determined(n: "Floats", d: "Floats") -> bool:
    """Whether runs say enough for both exponents: three sizes, three numbers of tokens, five different runs."""
    enough = len(np.unique(n)) >= 3 and len(np.unique(d)) >= 3
    return enough and len(np.unique(np.stack([n, d]), axis=1)[0]) >= _UNKNOWNS


def _start(n: "Floats", d: "Floats", y: "Floats") -> ParametricLaw:
    """Returns the best law of a grid over both exponents.

    With the exponents held, the law is linear in E, A and B, which non-negative least squares finds (variable
    projection, Golub and Pereyra 1973), here on relative errors. A start only: its squares follow the worst runs.
    """
    from scipy.optimize import nnls

    middle_n, middle_d = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    best, least = ParametricLaw(float(y.min()), 1.0, 0.5, 1.0, 0.5), math.inf
    for alpha in _GRID:
        for beta in _GRID:
            columns = np.stack([np.ones_like(y), (n / middle_n) ** -alpha, (d / middle_d) ** -beta], axis=1)
            terms, error = nnls(columns / y[:, None], np.ones_like(y))
            if error < least:
                e, a, b = np.maximum(terms, 1e-3 * y.min())
                least = float(error)
                best = ParametricLaw(float(e), float(a * middle_n**alpha), alpha, float(b * middle_d**beta), beta)
    return best


def _minimum(
    n: "Floats", d: "Floats", y: "Floats", delta: float | None, start: ParametricLaw
) -> tuple[ParametricLaw, float]:
    """Returns the law of the smallest objective near a start, and that objective.

    The unknowns are the logs of the three terms at the middle of the runs, and the exponents. A and alpha themselves
    move together over many orders of magnitude, which a minimiser follows badly.
    """
    from scipy.optimize import least_squares

    log_n, log_d, log_y = np.log(n), np.log(d), np.log(y)
    middle_n, middle_d = log_n.mean(), log_d.mean()
    log_n, log_d = log_n - middle_n, log_d - middle_d

    def terms(x: "Floats") -> "Floats":
        e, a, alpha, b, beta = x
        return np.stack([np.full_like(log_n, e), a - alpha * log_n, b - beta * log_d], axis=1)

    def residuals(x: "Floats") -> "Floats":
        return np.logaddexp.reduce(terms(x), axis=1) - log_y

    def jacobian(x: "Floats") -> "Floats":
        logs = terms(x)
        e, a, b = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None]).T
        return np.stack([e, a, -a * log_n, b, -b * log_d], axis=1)

    first = [
        math.log(start.E),
        math.log(start.A) - start.alpha * middle_n,
        start.alpha,
        math.log(start.B) - start.beta * middle_d,
        start.beta,
    ]
    solve: Any = least_squares
    found = solve(
        residuals,
        first,
        jacobian,
        bounds=([-30, -30, _EXPONENTS[0], -30, _EXPONENTS[0]], [30, 30, _EXPONENTS[1], 30, _EXPONENTS[1]]),
        loss="linear" if delta is None else "huber",
        f_scale=delta or 1.0,
        x_scale="jac",
        xtol=_TOLERANCE,
        ftol=_TOLERANCE,
        gtol=_TOLERANCE,
        max_nfev=5000,
    )
    e, a, alpha, b, beta = (float(value) for value in found.x)
    law = ParametricLaw(math.exp(e), math.exp(a + alpha * middle_n), alpha, math.exp(b + beta * middle_d), beta)
    return law, float(found.cost)


@dataclass(frozen=True)
class IsoFlop:
    """The sizes of models trained with one compute, and the best of them (Hoffmann et al. 2022, approach 2).

    Attributes:
        flops: The compute, the geometric mean of the runs'.
        runs: How many there are.
        parameters: The size of the lowest loss by a parabola over log N; None where the runs do not enclose one.
        loss: The loss there.
    """

    flops: float
    runs: int
    parameters: float | None
    loss: float | None


def isoflops(parameters: "ArrayLike", tokens: "ArrayLike", losses: "ArrayLike") -> list[IsoFlop]:
    """Finds the best size for each compute that at least four runs of different sizes had, 10% more or less.

    Args:
        parameters: Of each run, ``[runs]``.
        tokens: Of each run, ``[runs]``.
        losses: Of each run, ``[runs]``.
    """
    n, d, y = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses))
    flops = 6 * n * d
    left = np.argsort(flops)
    found = []
    while len(left):
        same = flops[left] <= flops[left[0]] * _SAME_COMPUTE
        group, left = left[same], left[~same]
        sizes, values = np.log(n[group]), y[group]
        if len(np.unique(sizes)) < 4:
            continue
        flat = float(np.exp(np.log(flops[group]).mean()))
        curve = np.polynomial.Polynomial.fit(sizes, values, 2).convert().coef
        bottom = -curve[1] / (2 * curve[2]) if len(curve) == 3 and curve[2] > 0 else math.nan
        if sizes.min() < bottom < sizes.max():
            lowest = float(np.polynomial.polynomial.polyval(bottom, curve))
            found.append(IsoFlop(flat, len(group), math.exp(bottom), lowest))
        else:
            found.append(IsoFlop(flat, len(group), None, None))
    return found
