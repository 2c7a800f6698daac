"""The model of regions (``diffbio_sc.engines.contextual``) on accessibility of blood cell types (heme16).

python benchmarks/contextual.py sequence [--seeds 5]       57,262 regions, the sequence alone, against its floor
python benchmarks/contextual.py small [--seeds 5]          the same with 16,384
python benchmarks/contextual.py neighbourhood [--seeds 5]  with where the regions lie, against its floor
python benchmarks/contextual.py hidden                     cell types that were taken out
python benchmarks/contextual.py context                    expression of factors against a random code
python benchmarks/contextual.py cost                       CPU seconds, memory, prediction of all regions
python benchmarks/contextual.py choose                     constants, without the test chromosomes

The floor is a logistic regression on canonical 7-mers for each cell type, its penalty chosen on the validation
chromosomes. Fits are kept in the folder that ``--keep`` names and found there again. ``--motifs FILE`` adds motifs in
MEME's format. Intervals resample blocks of 5 Mb of the test chromosomes, all models alike.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import argparse
import dataclasses
import json
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np

from diffbio_sc.engines import contextual
from diffbio_sc.engines.contextual import RegionModel, RegionSet, fit_regions
from diffbio_sc.engines.contextual_model import combine
from diffbio_sc.genome.sequences import encode, one_strand, reverse_complement
from diffbio_sc.numerics.ranking import auroc, ranking_measures

COLUMNS = ("auroc", "auroc_var", "within", "diff_auprc")
FLOORS = {"sequence": (0.758, 0.652, 0.705, 0.550), "neighbourhood": (0.787, 0.677, 0.733, 0.567)}
TARGETS = {"sequence": (0.768, 0.663, 0.716, 0.557), "neighbourhood": (0.798, 0.686, 0.745, 0.578)}
HIDDEN = (("Mono", "CD8", "GMP-B"), ("B", "NK", "MPP"))
SMALL = 16_384
BLOCK = 5_000_000


class Data(NamedTuple):
    """heme16 as arrays."""

    tokens: np.ndarray
    labels: np.ndarray
    context: np.ndarray
    chromosome: np.ndarray
    middle: np.ndarray
    group: np.ndarray
    split: np.ndarray
    cells: list[str]

    @property
    def main(self) -> np.ndarray:
        return np.isfinite(self.context).all(1)

    def take(self, rows: np.ndarray) -> Data:
        per_region = (self.tokens, self.labels, self.chromosome, self.middle, self.group, self.split)
        tokens, labels, chromosome, middle, group, split = (part[rows] for part in per_region)
        return Data(tokens, labels, self.context, chromosome, middle, group, split, self.cells)

    def neighbourhood(self) -> RegionSet:
        return RegionSet(self.chromosome, self.middle, self.group)


def load() -> Data:
    adata = ad.read_h5ad(Path(os.environ["DIFFBIO_SC_DATA"]) / "contextual" / "heme16.h5ad")
    var = adata.var
    return Data(
        encode(list(var["sequence"].astype(str))),
        np.asarray(adata.X, np.float32).T,
        np.asarray(adata.obsm["tf_expression"], np.float64),
        np.unique(var["chr"].astype(str), return_inverse=True)[1],
        ((var["start"] + var["end"]) // 2).to_numpy(np.int64),
        np.unique(var["source"].astype(str), return_inverse=True)[1],
        var["split"].astype(str).map({"train": 0, "val": 1, "test": 2}).to_numpy(),
        list(adata.obs_names),
    )


def smaller(data: Data, size: int) -> Data:
    """The first ``size`` training regions of one fixed order, with all validation and test regions."""
    training = np.flatnonzero(data.split == 0)
    kept = np.random.default_rng(0).permutation(training)[:size]
    return data.take(np.sort(np.concatenate([kept, np.flatnonzero(data.split > 0)])))


def read_meme(path: str | None) -> dict[str, np.ndarray] | None:
    """Log-odds against equal letters, with a pseudocount of .001."""
    if path is None:
        return None
    motifs: dict[str, list[list[float]]] = {}
    rows: list[list[float]] | None = None
    for line in Path(path).read_text().splitlines():
        words = line.split()
        if words[:1] == ["MOTIF"]:
            rows = motifs.setdefault(words[1], [])
        elif rows is not None and len(words) == 4 and all(word[0].isdigit() for word in words):
            rows.append([float(word) for word in words])
    tables = {name: np.array(rows) + 0.001 for name, rows in motifs.items() if rows}
    return {name: np.log2(table / table.sum(1, keepdims=True) / 0.25) for name, table in tables.items()}


def fitted(data: Data, name: str, keep: Path, **options: Any) -> dict[str, Any]:
    """Logits of the test regions by part, CPU seconds and report of a fit, from the folder if it is there."""
    path = keep / f"{name}.npz"
    if not path.exists():
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = fit_regions(
                data.tokens, data.labels, chromosome=data.chromosome, split=data.split, progress=False, **options
            )
        seconds = time.process_time() - began
        test = np.flatnonzero(data.split == 2)
        near = options.get("neighbourhood")
        whole = model.parts(data.tokens, near)
        report = json.dumps(model.report, default=lambda value: np.asarray(value).tolist())
        logits = combine(whole, model.shares)
        np.savez(path, logits=logits[test], floor=floor_logits(model, data, near)[test], seconds=seconds, report=report)
    with np.load(path) as stored:
        found = {key: stored[key] for key in stored.files}
    return {**found, "report": json.loads(str(found["report"]))}


def floor_logits(model: RegionModel, data: Data, near: RegionSet | None) -> np.ndarray:
    """Logits of the 7-mer logistic regression that was fitted beside the model, with the same further columns."""
    return model.floor.logits(one_strand(data.tokens), model.columns.scaled(one_strand(data.tokens), near))


def blocks(data: Data, draws: int) -> list[np.ndarray]:
    """Rows of the test regions in resampled blocks of their chromosomes."""
    test = np.flatnonzero(data.split == 2)
    code = np.unique(np.stack([data.chromosome[test], data.middle[test] // BLOCK]), axis=1, return_inverse=True)[1]
    members = [np.flatnonzero(code.ravel() == number) for number in range(code.max() + 1)]
    generator = np.random.default_rng(0)
    return [
        np.concatenate([members[number] for number in generator.integers(len(members), size=len(members))])
        for _ in range(draws)
    ]


def measures(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The four columns, of probabilities."""
    found = ranking_measures(labels, 1 / (1 + np.exp(-logits)))
    return np.array([found[column] for column in COLUMNS])


def compare(data: Data, models: list[np.ndarray], floor: np.ndarray, draws: int) -> None:
    """Print the mean over seeds, the floor, and the difference with its interval."""
    test = np.flatnonzero(data.split == 2)
    labels = data.labels[test][:, data.main]
    models, floor = [model[:, data.main] for model in models], floor[:, data.main]
    scores = np.array([measures(labels, model) for model in models])
    show("mean over seeds", scores.mean(0), "spread over seeds", scores.std(0))
    show("floor", measures(labels, floor))
    differences = []
    for rows in blocks(data, draws):
        base = measures(labels[rows], floor[rows])
        differences.append(np.mean([measures(labels[rows], model[rows]) for model in models], axis=0) - base)
    low, high = np.percentile(differences, [2.5, 97.5], axis=0)
    show("difference from the floor", scores.mean(0) - measures(labels, floor))
    show("  95 % from", low)
    show("  to", high)


def show(name: str, values: np.ndarray, *more: Any) -> None:
    print(f"{name:32s}", "  ".join(f"{c} {v:.4f}" for c, v in zip(COLUMNS, values, strict=True)), *more, flush=True)


def accuracy(data: Data, name: str, arguments: argparse.Namespace, mode: str, **options: Any) -> None:
    labels = data.labels[data.split == 2][:, data.main]
    fits = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        fit = fitted(data, f"{name}_{seed}", arguments.keep, tf_context=data.context, rng=seed, **options)
        report = fit["report"]
        show(
            f"seed {seed}", measures(labels, fit["logits"][:, data.main]), f"CPU s {fit['seconds']:.0f}", report["kept"]
        )
        fits.append(fit)
    show("target", np.array(TARGETS[mode]))
    show("published floor", np.array(FLOORS[mode]))
    print(json.dumps({key: fits[0]["report"][key] for key in ("penalties", "validation_loss", "reason")}))
    if arguments.draws:
        compare(data, [fit["logits"] for fit in fits], fits[0]["floor"], arguments.draws)


def hidden(data: Data, arguments: argparse.Namespace) -> None:
    """Take cell types out, and predict them by their expression of factors."""
    test = data.split == 2
    rows = []
    for number, names in enumerate(HIDDEN):
        out = np.array([cell in names for cell in data.cells])
        path = arguments.keep / f"hidden_{number}.npz"
        if not path.exists():
            seen = data._replace(labels=data.labels[:, ~out], context=data.context[~out])
            model = fit_regions(
                data.tokens, seen.labels, chromosome=data.chromosome, split=data.split, tf_context=seen.context,
                progress=False, rng=0,
            )  # fmt: skip
            validation, logits = (model.predict(data.tokens[data.split == part]) for part in (1, 2))
            nearest = model.copies._replace(softness=0.0).weights(data.context[out])
            copied = logits[:, model.copies.columns] @ nearest.T
            # What no mixture can do better: its weights are told the hidden labels of the validation chromosomes.
            known = np.column_stack([validation, np.ones(len(validation))])
            weights = np.linalg.lstsq(known, data.labels[data.split == 1][:, out], rcond=None)[0]
            np.savez(
                path, ours=logits @ model.mixing(data.context[out]).T, nearest=copied, mixture=logits @ weights[:-1],
                softness=model.copies.softness,
            )  # fmt: skip
        with np.load(path) as stored:
            found = {key: stored[key] for key in stored.files}
        own = fitted(data, "sequence_0", arguments.keep, tf_context=data.context, rng=0)["logits"][:, out]
        labels = data.labels[test]
        varies = (labels[:, data.main].sum(1) > 0) & (labels[:, data.main].sum(1) < data.main.sum())
        print(f"hidden {names}, softness {found['softness']}")
        for place, cell in enumerate(np.flatnonzero(out)):
            scores = (found["ours"][:, place], found["nearest"][:, place], own[:, place], found["mixture"][:, place])
            rows.append((labels[:, cell], varies, *scores))
            print(f"  {data.cells[cell]:6s}", *(f"{v:.4f}" for v in _areas(rows[-1], np.arange(test.sum()))))
    names = ("ours", "nearest copy", "model of the cell itself", "best mixture")
    everything = np.arange(test.sum())
    mean = np.mean([_areas(row, everything) for row in rows], axis=0)
    print("mean AUROC of varying regions:", *(f"{n} {v:.4f}" for n, v in zip(names, mean, strict=True)))
    draws = np.array(
        [np.mean([_areas(row, chosen) for row in rows], axis=0) for chosen in blocks(data, arguments.draws)]
    )
    for other, name in enumerate(names[1:], start=1):
        difference = draws[:, 0] - draws[:, other]
        print(f"ours - {name}: {mean[0] - mean[other]:.4f}, 95 %", np.round(np.percentile(difference, [2.5, 97.5]), 4))


def _areas(row: tuple[np.ndarray, ...], chosen: np.ndarray) -> list[float]:
    labels, varies, *scores = row
    kept = chosen[varies[chosen]]
    return [auroc(labels[kept], score[kept]) for score in scores]


def against_random_code(data: Data, arguments: argparse.Namespace) -> None:
    """Expression of factors against a random code of each cell type, on seen cell types."""
    labels = data.labels[data.split == 2][:, data.main]
    both: dict[str, list[np.ndarray]] = {"tf": [], "random": []}
    for seed in range(arguments.seeds):
        for name in both:
            key = f"sequence_{seed}" if name == "tf" else f"random_{seed}"
            fit = fitted(data, key, arguments.keep, tf_context=data.context, random_context=name == "random", rng=seed)
            both[name].append(fit["logits"][:, data.main])
            show(f"{name} context, seed {seed}", measures(labels, both[name][-1]))
    differences = [
        np.mean(
            [measures(labels[r], a[r]) - measures(labels[r], b[r]) for a, b in zip(*both.values(), strict=True)], axis=0
        )
        for r in blocks(data, arguments.draws)
    ]
    low, high = np.percentile(differences, [2.5, 97.5], axis=0)
    show("tf - random, 95 % from", low)
    show("  to", high)
    nothing = (low <= 0) & (high >= 0)
    print("no order can be claimed for:", ", ".join(np.array(COLUMNS)[nothing]) or "none of the columns")


def cost(data: Data, arguments: argparse.Namespace) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.process_time()
    model = fit_regions(
        data.tokens, data.labels, chromosome=data.chromosome, split=data.split, tf_context=data.context, progress=False
    )
    trained = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.process_time()
    logits = model.predict(data.tokens)
    predicted = time.process_time() - began
    first = data.tokens[:500]
    same = bool((model.predict(reverse_complement(first)) == model.predict(first)).all())
    epochs = sum(len(history["loss"]) for history in model.report["history"].values())
    print(
        json.dumps(
            {
                "cpu_seconds_fit": round(trained, 1),
                "cpu_seconds_by_step": model.report["cpu_by_step"],
                "network_epochs": epochs,
                "memory_mb_before": round(before),
                "memory_mb": round(memory),
                "cpu_seconds_predict": round(predicted, 1),
                "predicted": list(logits.shape),
                "strands_equal": same,
            }
        )
    )
    # Per pass over all (region, cell type) pairs of 57,262 regions. Another's figures: 625 s at 16,384 regions for the
    # operator that attends over bases, 22 s for both strands with a small convolutional network.
    passes = model.report["cpu_by_step"]["networks"] / max(epochs, 1) * SMALL / int((data.split == 0).sum())
    print(
        f"CPU s per pass at {SMALL:,} regions: {passes:.2f}; 625 / 50 = {625 / 50:.1f}; 22 / 2 * 2 / 3 = {22 / 3:.1f}"
    )


# Constants of diffbio_sc.engines.contextual, and what they are changed to.
CHOICES = {"_CHOSEN": (512, 2048), "_MOST_MOTIFS": (0, 48, 160), "_STEPS": (300, 600, 1200)}
MIXES = {"2:1:1": (2, 1, 1), "1:0:0": (1, 0, 0), "1:1:1": (1, 1, 1), "4:1:1": (4, 1, 1), "1:0:1": (1, 0, 1)}


def choose(data: Data, arguments: argparse.Namespace) -> None:
    """Change one constant at a time: fitted to 16,384 training regions, judged on the validation chromosomes.

    Some of the training chromosomes stop the training. Test chromosomes are not read.
    """
    known = data.take(np.flatnonzero(data.split < 2))
    known = smaller(known._replace(split=np.where(known.split == 1, 2, 0)), SMALL)
    judged = known.take(np.flatnonzero(known.split == 2))
    found: dict[str, list[np.ndarray]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for name, logits in _changed(known, judged, seed, arguments.keep).items():
            found.setdefault(name, []).append(logits[:, :-1][:, judged.main])
            seconds.setdefault(name, []).append(float(logits[0, -1]))
    labels = judged.labels[:, judged.main]
    default = found["default"]
    generator = np.random.default_rng(0)
    drawn = [(rows, generator.integers(len(default), size=len(default))) for rows in blocks(judged, arguments.draws)]
    for name, models in found.items():
        if len(models) < len(default):  # a mix, where some fit kept the network alone
            continue
        show(name, np.mean([measures(labels, one) for one in models], axis=0), f"CPU s {np.mean(seconds[name]):.0f}")
        if name != "default":
            changes = [
                np.mean([measures(labels[r], models[s][r]) - measures(labels[r], default[s][r]) for s in seeds], axis=0)
                for r, seeds in drawn
            ]
            for which, values in zip(
                ("  change from", "  to"), np.percentile(changes, [2.5, 97.5], axis=0), strict=True
            ):
                show(which, values)


def _changed(known: Data, judged: Data, seed: int, keep: Path) -> dict[str, np.ndarray]:
    """Logits of the judged regions with each constant changed, and in a last column the CPU seconds of the fit."""

    def fit(name: str, **options: Any) -> dict[str, np.ndarray]:
        path = keep / f"choose_{name.replace(' ', '')}_{seed}.npz"
        if not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = fit_regions(
                    known.tokens, known.labels, chromosome=known.chromosome, split=known.split,
                    tf_context=known.context, progress=False, rng=seed, **options,
                )  # fmt: skip
            np.savez(path, **_variants(name, model, judged.tokens))
            print(f"seed {seed}, {name}: {model.report['kept']}", flush=True)
        with np.load(path) as stored:
            return {key: stored[key] for key in stored.files}

    found = fit("default", n_networks=5)
    for constant, values in CHOICES.items():
        kept = getattr(contextual, constant)
        for value in values:
            setattr(contextual, constant, value)
            found |= fit(f"{constant} {value}")
        setattr(contextual, constant, kept)
    return found


def _variants(name: str, model: RegionModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of a model by name; of the default also with other numbers of networks and other mixes."""

    def of(model: RegionModel, shares: np.ndarray | None = None) -> np.ndarray:
        logits = model.predict(tokens) if shares is None else combine(model.parts(tokens, None), shares)
        return np.concatenate([logits, np.full((len(logits), 1), model.report["cpu_seconds"])], axis=1)

    if name != "default":
        return {name: of(model)}
    fewer = {number: dataclasses.replace(model, networks=model.networks[:number]) for number in (1, 2, 3)}
    found = {name: of(fewer[3]), "networks 1": of(fewer[1]), "networks 2": of(fewer[2]), "networks 5": of(model)}
    if model.logistic:
        found |= {f"mix {mix}": of(fewer[3], np.array(shares) / sum(shares)) for mix, shares in MIXES.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sequence", "small", "neighbourhood", "hidden", "context", "cost", "choose"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--draws", type=int, default=100, help="resamplings of the intervals; 0 for none")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "diffbio_sc_contextual")
    parser.add_argument("--motifs", help="motifs in MEME's format")
    arguments = parser.parse_args()
    arguments.keep.mkdir(parents=True, exist_ok=True)
    data, motifs = load(), read_meme(arguments.motifs)
    with_motifs = "_motifs" if motifs else ""
    if arguments.what == "sequence":
        accuracy(data, f"sequence{with_motifs}", arguments, "sequence", motifs=motifs)
    elif arguments.what == "small":
        accuracy(smaller(data, SMALL), f"small{with_motifs}", arguments, "sequence", motifs=motifs)
    elif arguments.what == "neighbourhood":
        near = data.neighbourhood()
        accuracy(data, f"near{with_motifs}", arguments, "neighbourhood", motifs=motifs, neighbourhood=near)
    else:
        {"hidden": hidden, "context": against_random_code, "cost": cost, "choose": choose}[arguments.what](
            data, arguments
        )


if __name__ == "__main__":
    main()
