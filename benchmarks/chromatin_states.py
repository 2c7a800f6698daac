"""Likelihood, speed, memory and recovery of ``dbio.tl.chromatin_states``.

python benchmarks/chromatin_states.py [models] [step] [s] [fast] [genome] [planted] [families] [select]
                                      [errors] [precision] [gradient] [compile] [many] [effort] [peers]

ChromHMM's figures are of version 1.27 with two threads on the same data; it is run beside ours in ``peers`` where the
variable CHROMHMM_JAR points to it. hmmlearn and dynamax run there where they are installed. SEEDS=0:3 sets the seeds,
STATES=10,15 the numbers of states of S.
Log-likelihoods are judged by a plain float64 forward pass of this file.
"""

from __future__ import annotations

import gzip
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import numba
import numpy as np
from scipy.optimize import linear_sum_assignment

import diffbio_sc as dbio
from diffbio_sc.engines import chromatin_states as engine
from diffbio_sc.numerics.chains import baum_welch, emissions
from diffbio_sc.numerics.chains.baum_welch import MarkovModel, Observations

SEEDS = range(*map(int, os.environ.get("SEEDS", "0:3").split(":")))
STATES = [int(number) for number in os.environ.get("STATES", "10,15").split(",")]
CHROMHMM = {10: (-742_608.487, 0.545), 15: (-715_244.248, 0.903)}  # log-likelihood, CPU seconds of a step
CHROMHMM_PLANTED = (-168_679.0, 0.034, 0.72)
CELLS = ("GM12878", "K562")


# Data and judges -----------------------------------------------------------------------------------------------------


def folder() -> Path:
    return Path(os.environ["DIFFBIO_SC_DATA"]) / "chromatin_states"


def codes(*files: str) -> tuple[list[np.ndarray], list[str]]:
    sequences: list[np.ndarray] = []
    marks: list[str] = []
    for file in files:
        with np.load(folder() / file) as stored:
            marks = [str(mark) for mark in stored["marks"]]
            sequences += [stored[key] for key in stored.files if stored[key].dtype == np.uint16]
    return sequences, marks


def bits(patterns: np.ndarray, marks: int) -> np.ndarray:
    return ((patterns[:, None].astype(np.int64) >> np.arange(marks)) & 1).astype(float)


def observations(sequences: list[np.ndarray], marks: int) -> Observations:
    table = np.zeros(2**16, np.int32)
    for sequence in sequences:
        table[sequence] = 1
    patterns = np.flatnonzero(table)
    table[patterns] = np.arange(len(patterns))
    index = np.concatenate([table[sequence] for sequence in sequences])
    return Observations(bits(patterns, marks), [len(sequence) for sequence in sequences], index=index)


def data_s() -> tuple[Observations, list[np.ndarray], list[str]]:
    sequences, marks = codes(*(f"{cell}_hg18chr11_codes.npz" for cell in CELLS))
    return observations(sequences, len(marks)), sequences, marks


@numba.njit(cache=True)
def _judge(index, initial, transition, table):
    states = len(initial)
    now, new = initial * table[index[0]], np.empty(states)
    total = now.sum()
    result = np.log(total)
    now /= total
    for t in range(1, len(index)):
        new[:] = 0.0
        for i in range(states):
            for j in range(states):
                new[j] += now[i] * transition[i, j]
        total = 0.0
        for j in range(states):
            new[j] *= table[index[t], j]
            total += new[j]
        result += np.log(total)
        now[:] = new / total
    return result


def judge(sequences, model: MarkovModel, columns=None, stationary=False) -> float:
    """Log-likelihood, float64, bin by bin; marks that the model has beyond ``columns`` are summed out."""
    mean = model.emission.mean if columns is None else model.emission.mean[:, columns]
    patterns = np.arange(2 ** mean.shape[1])
    present = bits(patterns, mean.shape[1])
    clipped = np.clip(mean, 1e-12, 1 - 1e-12)
    table = np.exp(present @ np.log(clipped).T + (1 - present) @ np.log1p(-clipped).T)
    initial = np.linalg.matrix_power(model.transition, 5000)[0] if stationary else model.initial
    return float(sum(_judge(sequence, initial, model.transition, table) for sequence in sequences))


def chromhmm_model(states: int) -> MarkovModel:
    model = dbio.io.read_chromhmm_model(folder() / "models" / f"chromhmm_sample_hg18_{states}.txt")
    return engine.from_state_model(model)


def cpu() -> float:
    return time.process_time()


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def matched(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Found states in the order of the true ones, by the Hungarian algorithm."""
    scale = np.maximum(truth.std(0), 1e-12)
    cost = np.abs((truth[:, None] - found[None]) / scale).sum(2)
    return linear_sum_assignment(cost)[1]


def in_fresh_process(call: str) -> None:
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import chromatin_states as b; b.{call}"
    subprocess.run([sys.executable, "-c", script], check=True)


def row(*cells) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(title: str, *columns: str) -> None:
    print(f"\n## {title}\n")
    row(*columns)
    print("|" + "---|" * len(columns))


# Parts ---------------------------------------------------------------------------------------------------------------


def models() -> None:
    head("models: ChromHMM's model files on its sample", "states", "log-likelihood", "ChromHMM's", "CPU s in all")
    paths = [folder() / f"{cell}_chr11_binary.txt.gz" for cell in CELLS]
    adata = dbio.io.read_chromhmm_binary(paths)
    for states, (expected, _) in CHROMHMM.items():
        began = cpu()
        path = folder() / "models" / f"chromhmm_sample_hg18_{states}.txt"
        dbio.tl.chromatin_states(adata, model=path, cell_type_key="cell_type")
        row(states, f"{adata.uns['chromatin_states']['log_likelihood']:.4f}", expected, f"{cpu() - began:.2f}")


def step() -> None:
    head(
        "step: one EM step on S (1,344,522 bins), CPU seconds",
        *("states", "ours", "ChromHMM 1.27", "ratio", "compression, once", "tokens"),
    )
    data, sequences, marks = data_s()
    began = cpu()
    observations(sequences, len(marks))
    compression = cpu() - began
    for states, (_, peer) in CHROMHMM.items():
        model = chromhmm_model(states)
        times = []
        for _ in range(6):
            began = cpu()
            statistics, sums = baum_welch.expect(data, model)
            baum_welch.maximize(model, statistics, sums)
            times.append(cpu() - began)
        best = min(times)
        tokens = data.compressed.tokens.n_tokens
        row(states, f"{best:.4f}", peer, f"1/{peer / best:.1f}", f"{compression:.2f}", tokens)


def _annotation(name: str, bins: int) -> np.ndarray:
    """Bins of chr11 that an annotation touches."""
    touched = np.zeros(bins + 1, np.int32)
    with gzip.open(folder() / "annot" / f"{name}.hg18.bed.gz", "rt") as lines:
        for line in lines:
            chromosome, start, end = line.split()[:3]
            if chromosome == "chr11":
                touched[min(int(start) // 200, bins)] += 1
                touched[min((int(end) - 1) // 200 + 1, bins)] -= 1
    return np.cumsum(touched[:-1]) > 0


def _information(state: np.ndarray, annotation: np.ndarray) -> float:
    joint = np.zeros((state.max() + 1, 2))
    np.add.at(joint, (state, annotation.astype(int)), 1.0 / len(state))
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum())


def _biology(data: Observations, model: MarkovModel) -> tuple[float, float]:
    state = engine.decode(data, model, top=1).state[: data.lengths[0]]  # GM12878
    return tuple(_information(state, _annotation(name, len(state))) for name in ("laminB1lads", "CpGIsland"))


def s(effort: str = "default") -> None:
    head(
        f"{effort}: fitted to S; mutual information of GM12878's states with annotations, nats; likelihood of a bin of "
        "20 other chromosomes of K562 in hg19, WCE summed out",
        *("states", "seed", "log-likelihood", "over ChromHMM", "EM steps", "CPU s", "lamina", "CpG islands"),
        *("K562, a bin", "over ChromHMM"),
    )
    data, sequences, marks = data_s()
    held, held_marks = codes("K562_hg19_codes_dev.npz")
    columns, bins = [marks.index(mark) for mark in held_marks], sum(map(len, held))
    for states in STATES:
        model, peer = chromhmm_model(states), CHROMHMM[states][0]
        lamina, islands = _biology(data, model)
        other = judge(held, model, columns, stationary=True) / bins
        row(states, "ChromHMM 1.27", peer, "", 200, "", f"{lamina:.4f}", f"{islands:.5f}", f"{other:.5f}", "")
        for seed in SEEDS:
            began = cpu()
            fitted = engine.fit_states(data, states, effort=effort, rng=seed)
            seconds = cpu() - began
            value = judge(sequences, fitted.model)
            lamina, islands = _biology(data, fitted.model)
            there = judge(held, fitted.model, columns, stationary=True) / bins
            row(
                *(states, seed, f"{value:.1f}", f"{value - peer:+.1f}", fitted.steps, f"{seconds:.1f}"),
                *(f"{lamina:.4f}", f"{islands:.5f}", f"{there:.5f}", f"{there - other:+.5f}"),
            )


def fast() -> None:
    s("fast")


def genome() -> None:
    head(
        "genome: GM12878, 23 chromosomes of hg19, 9 marks, 15.18 million bins, 15 states",
        *("what", "CPU s", "wall s", "peak GiB", "note"),
    )
    in_fresh_process("run_genome()")
    in_fresh_process("run_genome(top=3)")


def run_genome(top: int | None = None) -> None:
    began, wall = cpu(), time.perf_counter()
    sequences, marks = codes("GM12878_hg19_codes.npz")
    data = observations(sequences, len(marks))
    del sequences
    row("reading and compression", f"{cpu() - began:.1f}", f"{time.perf_counter() - wall:.1f}", f"{peak():.2f}", "")
    start, first = cpu(), time.perf_counter()
    fitted = engine.fit_states(data, 15, rng=0)
    note = f"{fitted.steps} steps, log-likelihood {fitted.log_likelihood:.1f}, converged {fitted.converged}"
    row("fit", f"{cpu() - start:.1f}", f"{time.perf_counter() - first:.1f}", f"{peak():.2f}", note)
    start, first = cpu(), time.perf_counter()
    baum_welch.expect(data, fitted.model)
    row("one EM step", f"{cpu() - start:.2f}", f"{time.perf_counter() - first:.2f}", f"{peak():.2f}", "")
    start, first = cpu(), time.perf_counter()
    decoded = engine.decode(data, fitted.model, top=top)
    kept = sum(part.nbytes for part in decoded if isinstance(part, np.ndarray)) / 2**30
    what = "posteriors and paths" if top is None else f"top {top} states and paths"
    seconds, passed = cpu() - start, time.perf_counter() - first
    row(what, f"{seconds:.1f}", f"{passed:.1f}", f"{peak():.2f}", f"result {kept:.2f} GiB")
    row("all", f"{cpu() - began:.1f}", f"{time.perf_counter() - wall:.1f}", f"{peak():.2f}", "")


def planted() -> None:
    head(
        "planted: 300,000 bins drawn from a model of 15 states",
        *("model", "log-likelihood", "over truth", "emission error, mean", "largest", "transitions, mean", "CPU s"),
    )
    with np.load(folder() / "planted_15state_T300k.npz") as stored:
        sequences = [stored["seq1"].astype(np.uint16), stored["seq2"].astype(np.uint16)]
        truth = MarkovModel(stored["pi"], stored["A"], emissions.Bernoulli(stored["P"]))
    best = judge(sequences, truth)
    row("truth", f"{best:.1f}", "", "", "", "", "")
    peer, error, largest = CHROMHMM_PLANTED
    row("ChromHMM 1.27, 80 steps", f"{peer:.0f}", f"{peer - best:+.0f}", error, largest, 0.023, "")
    data = observations(sequences, 10)
    for seed in SEEDS:
        began = cpu()
        fitted = engine.fit_states(data, 15, rng=seed)
        seconds = cpu() - began
        found = fitted.model.select(matched(truth.emission.mean, fitted.model.emission.mean))
        value = judge(sequences, found)
        error = np.abs(found.emission.mean - truth.emission.mean)
        off = np.abs(found.transition - truth.transition).mean()
        row(
            f"ours, seed {seed}",
            *(f"{value:.1f}", f"{value - best:+.1f}", f"{error.mean():.4f}", f"{error.max():.4f}", f"{off:.4f}"),
            f"{seconds:.1f}",
        )


def planted_family(name: str, seed: int, bins: int = 60_000, states: int = 6, marks: int = 5):
    """Rows, lengths and the truth of a chain of a family: overdispersed counts, signal with a point mass."""
    rng = np.random.default_rng([seed, len(name)])
    transition = 0.1 * rng.dirichlet(np.ones(states), states) + 0.9 * np.eye(states)
    lengths = [bins // 4] * 4
    path = np.concatenate([_walk(transition, length, rng) for length in lengths])
    # Every state has another combination of marks, the first none: states that are alike cannot be told apart.
    combination = np.append(0, 1 + rng.choice(2**marks - 1, states - 1, replace=False))
    active = ((combination[:, None] >> np.arange(marks)) & 1).astype(bool)
    if name == "gaussian":
        mean = np.where(active, rng.uniform(4, 9, (states, marks)), 2.0)
        # Signal clipped below, as of -log10 p: where a mark is absent most bins hold exactly 2.
        deviation = np.where(active, rng.uniform(0.5, 1.5, (states, marks)), 0.3)
        rows = mean[path] + deviation[path] * rng.normal(size=(bins, marks))
        absent = ~active[path]
        rows = np.where(absent & (rng.random(rows.shape) < 0.97), 2.0, np.maximum(rows, 2.0))
        mean = np.stack([rows[path == state].mean(0) for state in range(states)])
        return rows, lengths, path, transition, mean
    if name == "bernoulli":
        mean = np.where(active, rng.uniform(0.3, 0.95, (states, marks)), rng.uniform(0.002, 0.05, (states, marks)))
        return (rng.random((bins, marks)) < mean[path]).astype(float), lengths, path, transition, mean
    if name == "multinomial":
        mean = rng.dirichlet(0.5 * np.ones(marks), states)
        total = rng.negative_binomial(2, 2 / (2 + 12), bins)
        rows = np.stack([rng.multinomial(n, mean[state]) for n, state in zip(total, path, strict=True)])
        return rows.astype(float), lengths, path, transition, mean
    mean = np.where(active, rng.uniform(6, 30, (states, marks)), rng.uniform(0.2, 1.0, (states, marks)))
    if name == "poisson":
        return rng.poisson(mean[path]).astype(float), lengths, path, transition, mean
    dispersion = rng.uniform(0.2, 2.0, (states, marks))
    rate = rng.gamma(1 / dispersion[path], mean[path] * dispersion[path])
    return rng.poisson(rate).astype(float), lengths, path, transition, mean


def _walk(transition, length, rng) -> np.ndarray:
    steps, path = rng.random(length), np.zeros(length, np.int64)
    bounds = np.cumsum(transition, 1)
    for t in range(1, length):
        path[t] = min(int(np.searchsorted(bounds[path[t - 1]], steps[t])), len(transition) - 1)
    return path


def families() -> None:
    head(
        "families: planted chains of 6 states, 5 marks, 60,000 bins; three sets of each",
        *("family", "set", "over truth's likelihood", "mean's relative error, mean", "largest"),
        *("transitions, mean error", "states right", "CPU s"),
    )
    for name in emissions.FAMILIES:
        for seed in SEEDS:
            rows, lengths, path, transition, mean = planted_family(name, seed)
            began = cpu()
            data = _as_observations(rows, lengths, name)
            fitted = engine.fit_states(data, 6, family=name, rng=0)
            seconds = cpu() - began
            found = fitted.model.select(matched(mean, fitted.model.emission.mean))
            # The truth's likelihood: the family at its best for the true path, then trained from there.
            truth = baum_welch.fit(data, _from_path(found, rows, path, transition), max_steps=400, tolerance=1e-3)
            scale = np.abs(mean).mean() if name in ("bernoulli", "multinomial") else np.abs(mean)
            error = np.abs(found.emission.mean - mean) / scale
            state = engine.decode(data, found, top=1).state
            row(
                *(name, seed, f"{fitted.log_likelihood - truth.objective:+.2f}", f"{error.mean():.4f}"),
                *(f"{error.max():.3f}", f"{np.abs(found.transition - transition).mean():.4f}"),
                *(f"{(state == path).mean():.4f}", f"{seconds:.1f}"),
            )


def _as_observations(rows: np.ndarray, lengths, name: str) -> Observations:
    if name != "gaussian":
        distinct, index = np.unique(rows, axis=0, return_inverse=True)
        if len(distinct) * 4 <= len(rows):
            return Observations(distinct, lengths, index=index.ravel().astype(np.int32))
    return Observations(rows, lengths)


def _from_path(model: MarkovModel, rows, path, transition) -> MarkovModel:
    weights = np.eye(len(transition))[path]
    emission = model.emission.maximize(model.emission.sums(rows, weights))
    return MarkovModel(weights.mean(0), transition, emission)


def select() -> None:
    head(
        "select: number of states by held-out likelihood, planted chains of 4 to 8 states",
        *("family", "truth", "chosen", "largest", "CPU s"),
    )
    for name, truth in (
        ("bernoulli", 4),
        ("bernoulli", 6),
        ("bernoulli", 8),
        ("negative_binomial", 5),
        ("gaussian", 4),
    ):
        rows, lengths, *_ = planted_family(name, 7, bins=40_000, states=truth, marks=6)
        began = cpu()
        found = engine.held_out(_as_observations(rows, lengths, name), range(2, truth + 4), family=name)
        row(name, truth, found.chosen, found.best, f"{cpu() - began:.1f}")


def errors() -> None:
    head(
        "errors: standard errors by resampling against the spread over 24 independent sets, 20 sequences of 1,000 bins",
        *("quantity", "spread", "stated", "ratio"),
    )
    sets, stated = [], []
    truth = None
    for seed in range(24):
        rng = np.random.default_rng([9, seed])
        transition = np.array([[0.95, 0.03, 0.02], [0.06, 0.9, 0.04], [0.1, 0.05, 0.85]])
        mean = np.array([[0.05, 0.1, 0.02], [0.7, 0.2, 0.05], [0.3, 0.8, 0.6]])
        path = np.concatenate([_walk(transition, 1000, rng) for _ in range(20)])
        rows = (rng.random((len(path), 3)) < mean[path]).astype(float)
        data = _as_observations(rows, [1000] * 20, "bernoulli")
        truth = MarkovModel(np.full(3, 1 / 3), transition, emissions.Bernoulli(mean))
        model = baum_welch.fit(data, truth, max_steps=300, tolerance=1e-5).parameters
        sets.append((model.emission.mean, model.transition))
        if seed < 8:
            stated.append(engine.standard_errors(data, model, rng=seed))
    for place, name in enumerate(("emission", "transition")):
        spread = np.std([one[place] for one in sets], 0, ddof=1)
        said = np.mean([one[name] for one in stated], 0)
        row(name, f"{spread.mean():.5f}", f"{said.mean():.5f}", f"{said.mean() / spread.mean():.2f}")


def precision() -> None:
    import jax.numpy as jnp

    from diffbio_sc.numerics.chains import hmm

    head(
        "precision: 1,344,522 bins, 15 states, against float64",
        *("what", "largest error of posteriors", "states that differ", "log-likelihood"),
    )
    data, _, _ = data_s()
    model = chromhmm_model(15)
    reference = _float64_posterior(data, model)
    decoded = engine.decode(data, model)
    found = {"decoded, stored as float32": (decoded.posterior, decoded.log_likelihood.sum())}
    starts = np.zeros(data.n_positions, bool)
    starts[data.starts] = True
    table = model.emission.log_likelihood(data.distinct).astype(np.float32)
    log = [jnp.log(jnp.asarray(part, jnp.float32)) for part in (model.initial, model.transition)]
    result = hmm.posterior(*log, jnp.asarray(table)[data.index], starts=starts)
    found["JAX, float32"] = (np.asarray(result.probabilities), float(result.log_likelihood))
    for name, (posterior, value) in found.items():
        differ = int((posterior.argmax(1) != reference.argmax(1)).sum())
        row(name, f"{np.abs(posterior - reference).max():.1e}", differ, f"{value:.2f}")


def _float64_posterior(data: Observations, model: MarkovModel) -> np.ndarray:
    """Logarithms throughout, numpy alone."""
    table = model.emission.log_likelihood(data.distinct)
    with np.errstate(divide="ignore"):
        initial, transition = np.log(model.initial), np.log(model.transition)
    parts = []
    for start, end in zip(data.starts, data.ends, strict=True):
        parts.append(_log_posterior(table, data.index[start:end], initial, transition))
    return np.concatenate(parts)


@numba.njit(cache=True)
def _log_posterior(table, index, initial, transition):
    length, states = len(index), len(initial)
    forward = np.empty((length, states))
    forward[0] = initial + table[index[0]]
    for t in range(1, length):
        for j in range(states):
            highest = -np.inf
            for i in range(states):
                highest = max(highest, forward[t - 1, i] + transition[i, j])
            if highest == -np.inf:
                forward[t, j] = -np.inf
                continue
            total = 0.0
            for i in range(states):
                total += np.exp(forward[t - 1, i] + transition[i, j] - highest)
            forward[t, j] = highest + np.log(total) + table[index[t], j]
    backward, new = np.zeros(states), np.empty(states)
    for t in range(length - 1, -1, -1):
        before = forward[t].copy()
        highest = (before + backward).max()
        forward[t] = np.exp(before + backward - highest)
        forward[t] /= forward[t].sum()
        for i in range(states):
            top = -np.inf
            for j in range(states):
                top = max(top, transition[i, j] + table[index[t], j] + backward[j])
            if top == -np.inf:
                new[i] = -np.inf
                continue
            total = 0.0
            for j in range(states):
                total += np.exp(transition[i, j] + table[index[t], j] + backward[j] - top)
            new[i] = top + np.log(total)
        backward[:] = new
    return forward


def gradient() -> None:
    import jax
    import jax.numpy as jnp

    from diffbio_sc.numerics.chains import hmm

    head(
        "gradient: log-likelihood of S and its gradient, JAX on the CPU",
        *("what", "CPU s", "over the E-step"),
    )
    data, _, _ = data_s()
    model = chromhmm_model(15)
    starts = np.zeros(data.n_positions, bool)
    starts[data.starts] = True
    rows = jnp.asarray(model.emission.log_likelihood(data.distinct).astype(np.float32))[data.index]
    log = [jnp.log(jnp.asarray(part, jnp.float32)) for part in (model.initial, model.transition)]
    functions = {
        "E-step (posterior)": jax.jit(lambda *inputs: hmm.posterior(*inputs, starts=starts)),
        "gradient": jax.jit(jax.grad(lambda *inputs: hmm.log_likelihood(*inputs, starts=starts), (0, 1, 2))),
    }
    times: dict[str, float] = {}
    for name, function in functions.items():
        jax.block_until_ready(function(*log, rows))
        best = []
        for _ in range(4):
            began = cpu()
            jax.block_until_ready(function(*log, rows))
            best.append(cpu() - began)
        times[name] = min(best)
        row(name, f"{times[name]:.3f}", f"{times[name] / times['E-step (posterior)']:.2f}")


def compile() -> None:
    head(
        "compile: CPU seconds of a fast fit of S by calls in one process, numba's cache empty and then filled",
        *("cache", "call", "data", "CPU s"),
    )
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty", "filled"):
            script = (
                f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import chromatin_states as b; "
                f"b.run_compile({state!r})"
            )
            subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "NUMBA_CACHE_DIR": cache})


def run_compile(state: str) -> None:
    data, sequences, marks = data_s()
    other = observations([sequences[1][:600_000], sequences[0][:500_000]], len(marks))
    for call, (name, one) in enumerate((("S", data), ("S", data), ("another of similar size", other))):
        before = cpu()
        engine.fit_states(one, 15, effort="fast", max_steps=1, rng=0)
        engine.decode(one, chromhmm_model(15), top=1)
        row(state, call + 1, name, f"{cpu() - before:.2f}")


def many() -> None:
    head("many: 1,000 marks, 100 states, one chromosome", "bins", "CPU s of a step", "GiB of the marks", "peak GiB")
    in_fresh_process("run_many()")


def run_many(bins: int = 400_000) -> None:
    rng = np.random.default_rng(0)
    marks, states = 1000, 100
    mean = rng.beta(0.3, 3.0, (states, marks))
    path = np.repeat(rng.integers(states, size=bins // 20 + 1), 20)[:bins]
    rows = np.empty((bins, marks), np.uint8)
    for start in range(0, bins, 10_000):
        rows[start : start + 10_000] = (
            rng.random((len(path[start : start + 10_000]), marks)) < mean[path[start : start + 10_000]]
        )
    data = Observations(rows, [bins])
    model = MarkovModel(
        np.full(states, 1 / states),
        np.full((states, states), 0.05 / states) + 0.95 * np.eye(states),
        emissions.Bernoulli(np.clip(mean, 1e-4, 1 - 1e-4)),
    )
    began = cpu()
    baum_welch.expect(data, model)
    row(bins, f"{cpu() - began:.1f}", f"{rows.nbytes / 2**30:.2f}", f"{peak():.2f}")


def effort() -> None:
    head(
        "effort: what starts and moves give, S and the planted set",
        *("data", "states", "random starts", "kept", "failures in a row", "log-likelihoods over seeds", "CPU s, mean"),
    )
    data, _, _ = data_s()
    with np.load(folder() / "planted_15state_T300k.npz") as stored:
        other = observations([stored["seq1"].astype(np.uint16), stored["seq2"].astype(np.uint16)], 10)
    choices = [engine.Effort(0, 20, 1, 0, 0), engine.Effort(5, 30, 1, 0, 0), engine.EFFORTS["fast"]]
    choices += [engine.EFFORTS["default"]._replace(failures=20), engine.EFFORTS["default"]]
    for name, one, states in (("S", data, 10), ("S", data, 15), ("planted", other, 15)):
        for chosen in choices:
            values, began = [], cpu()
            for seed in SEEDS:
                values.append(round(engine.fit_states(one, states, effort=chosen, rng=seed).log_likelihood))
            seconds = (cpu() - began) / len(SEEDS)
            row(name, states, chosen.random_starts, chosen.kept, chosen.failures, values, f"{seconds:.1f}")


def peers() -> None:
    head(
        "peers: CPU microseconds of a bin and EM step, 100,000 bins of GM12878, 15 states",
        *("peer", "microseconds", "ours over it"),
    )
    sequences, marks = codes("GM12878_hg18chr11_codes.npz")
    sequences = [sequences[0][:100_000]]
    data = observations(sequences, len(marks))
    model = chromhmm_model(15)
    times = []
    for _ in range(6):
        began = cpu()
        baum_welch.expect(data, model)
        times.append(cpu() - began)
    ours = min(times) / 100_000 * 1e6
    row("ours", f"{ours:.4f}", "")
    for name, function in (("hmmlearn", _hmmlearn), ("dynamax", _dynamax)):
        try:
            found = function(bits(sequences[0], len(marks)), model)
        except ImportError:
            row(name, "not installed", "")
            continue
        row(name, f"{found:.3f}", f"1/{found / ours:.0f}")
    if os.environ.get("CHROMHMM_JAR"):
        row("ChromHMM, on S", f"{_chromhmm():.3f}", "")


def _hmmlearn(rows: np.ndarray, model: MarkovModel) -> float:
    from hmmlearn.base import BaseHMM

    class BernoulliHMM(BaseHMM):
        def _compute_log_likelihood(self, X):
            return model.emission.log_likelihood(X)

        def _initialize_sufficient_statistics(self):
            return {**super()._initialize_sufficient_statistics(), "obs": 0.0}

        def _accumulate_sufficient_statistics(self, stats, X, lattice, posteriors, fwdlattice, bwdlattice):
            super()._accumulate_sufficient_statistics(
                stats=stats, X=X, lattice=lattice, posteriors=posteriors, fwdlattice=fwdlattice, bwdlattice=bwdlattice
            )
            stats["obs"] = stats["obs"] + posteriors.T @ X

        def _check(self):
            pass

    times = []
    for steps in (1, 4):
        peer = BernoulliHMM(15, n_iter=steps, tol=-np.inf, init_params="", params="st", implementation="scaling")
        peer.startprob_, peer.transmat_, peer.n_features = model.initial, model.transition, rows.shape[1]
        began = cpu()
        peer.fit(rows)
        times.append(cpu() - began)
    return (times[1] - times[0]) / 3 / len(rows) * 1e6


def _dynamax(rows: np.ndarray, model: MarkovModel) -> float:
    import jax
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import BernoulliHMM

    peer = BernoulliHMM(15, rows.shape[1])
    times = []
    for steps in (1, 4):
        parameters, properties = peer.initialize(
            initial_probs=jnp.asarray(model.initial),
            transition_matrix=jnp.asarray(model.transition),
            emission_probs=jnp.asarray(np.clip(model.emission.mean, 1e-4, 1 - 1e-4)),
        )
        best = []
        for _ in range(2):
            began = cpu()
            jax.block_until_ready(
                peer.fit_em(parameters, properties, jnp.asarray(rows), num_iters=steps, verbose=False)
            )
            best.append(cpu() - began)
        times.append(min(best))
    return max(times[1] - times[0], 0.0) / 3 / len(rows) * 1e6


def _chromhmm() -> float:
    sequences, marks = codes(*(f"{cell}_hg18chr11_codes.npz" for cell in CELLS))
    times = []
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "in").mkdir()
        for cell, sequence in zip(CELLS, sequences, strict=True):
            lines = ["\t".join(map(str, line)) for line in bits(sequence, len(marks)).astype(int).tolist()]
            text = f"{cell}\tchr11\n" + "\t".join(marks) + "\n" + "\n".join(lines) + "\n"
            (Path(work) / "in" / f"{cell}_chr11_binary.txt").write_text(text)
        for steps in (3, 13):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            found = subprocess.run(
                ["java", "-Xmx3500M", "-jar", os.environ["CHROMHMM_JAR"], "LearnModel", "-p", "2", "-r", str(steps)]
                + ["-noautoopen", "-noenrich", "-nobed", "-noimage", "-nobrowser"]
                + [f"{work}/in", f"{work}/out{steps}", "15", "hg18"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert re.search(r"^\s*\d+\s+-\d", found.stdout, re.M)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return (times[1] - times[0]) / 10 / sum(map(len, sequences)) * 1e6


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parts = {
        function.__name__: function
        for function in (models, step, s, fast, genome, planted, families, select)
        + (errors, precision, gradient, compile, many, effort, peers)
    }
    for part in sys.argv[1:] or parts:
        parts[part]()
