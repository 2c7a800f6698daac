"""Steps trained through one another, against the same steps trained one after the other.

python benchmarks/composition.py [states] [states_real] [loops] [labels_simulated] [labels] [residuals]
                                 [spots_simulated] [spots]

Each command prints a table: the loss on held-out data after the steps were fitted in turn, after that and further
training of the last step alone (the control: as many steps of descent as the joint training has), and after joint
training from the fit in turn; then the paired differences over the seeds with their standard deviation. SEEDS=0:3 sets
the seeds. ``states_real``, ``labels`` and ``spots`` need DIFFBIO_SC_DATA.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
import scipy.stats
from flax import nnx

import diffbio_sc as dbio
from diffbio_sc.operators import Operator, OperatorConfig, Pipeline, epigenomics, multiomics
from diffbio_sc.operators.losses import binary_cross_entropy
from diffbio_sc.training import train

SEEDS = range(*map(int, os.environ.get("SEEDS", "0:3").split(":")))


def folder() -> Path:
    return Path(os.environ["DIFFBIO_SC_DATA"])


def row(*cells) -> None:
    texts = (f"{cell:.5f}" if isinstance(cell, float) else str(cell) for cell in cells)
    print("| " + " | ".join(texts) + " |", flush=True)


def heading(*cells) -> None:
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)


def summary(name: str, in_turn: list[float], control: list[float], joint: list[float]) -> None:
    """Differences of joint training from the better of the other two, seed by seed."""
    gain = np.minimum(in_turn, control) - np.array(joint)
    spread = gain.std(ddof=1) if len(gain) > 1 else float("nan")
    verdict = "improves" if gain.mean() > spread and (gain > 0).all() else "no improvement beyond the spread"
    print(
        f"{name}: joint training lowers the held-out loss by {gain.mean():.5f} (sd {spread:.5f}, {len(gain)} seeds; "
        f"{100 * gain.mean() / np.mean(np.minimum(in_turn, control)):.2f} %): {verdict}\n",
        flush=True,
    )


# Threshold and normalisation of marks -> chromatin states of another chromosome --------------------------------------


def state_pipeline(states: int, marks: int, seed: int) -> Pipeline:
    return Pipeline(
        {
            "presence": epigenomics.MarkBinarizer(
                epigenomics.MarkBinarizerConfig(num_marks=marks), rngs=nnx.Rngs(seed)
            ),
            "states": epigenomics.ChromatinStateAnnotator(
                epigenomics.ChromatinStateConfig(num_states=states, num_marks=marks), rngs=nnx.Rngs(seed)
            ),
        },
        losses={"states": 1.0, "presence_bound": -1.0},
    )


def count_likelihood(pipeline: Pipeline, counts: np.ndarray) -> float:
    """Minus the exact log-likelihood of counts for each bin, bin by bin in float64, presence summed out."""
    presence, states = pipeline.steps["presence"], pipeline.steps["states"]
    parameters = {
        name: np.exp(np.asarray(getattr(presence, f"log_{name}")[...], np.float64))
        for name in ("background", "excess", "dispersion")
    }
    absent = np.maximum(counts.mean(0), 1e-4) * parameters["background"]
    laws = []
    for mean, dispersion in zip((absent, absent * (1 + parameters["excess"])), parameters["dispersion"], strict=True):
        laws.append(scipy.stats.nbinom.logpmf(counts, 1 / dispersion, 1 / (1 + dispersion * mean)))
    probability = np.asarray(states.emission_matrix, np.float64)
    with np.errstate(divide="ignore"):
        table = np.logaddexp(np.log1p(-probability) + laws[0][:, None], np.log(probability) + laws[1][:, None]).sum(2)
    transition = np.asarray(states.transition_matrix, np.float64)
    now, total = np.asarray(states.initial_distribution, np.float64), 0.0
    for bin_, logs in enumerate(table):
        now = (now if bin_ == 0 else now @ transition) * np.exp(logs - logs.max())
        total += np.log(now.sum()) + logs.max()
        now /= now.sum()
    return -total / len(counts)


def compare_states(name: str, sets, n_states: int) -> None:
    print(f"\n## {name}: negative log-likelihood of the counts of held-out bins, nats for each bin\n")
    heading("seed", "bound: in turn", "in turn, longer", "joint", "exact: in turn", "in turn, longer", "joint", "CPU s")
    found = {kind: ([], [], []) for kind in ("bound", "exact")}
    for seed, (given, held_out) in zip(SEEDS, sets, strict=True):
        started = time.process_time()
        in_turn = state_pipeline(n_states, given.shape[-1], seed)
        in_turn.fit_in_turn({"mark_counts": given}, {"presence": {"steps": 400}})
        longer, joint = nnx.clone(in_turn), nnx.clone(in_turn)
        marks = longer.steps["presence"]({"mark_counts": given})["histone_marks"]
        longer.steps["states"].fit({"histone_marks": marks}, method="gradient", max_steps=300, learning_rate=0.02)
        joint.fit({"mark_counts": given}, max_epochs=300, learning_rate=0.02)
        cells = []
        for kind, judge in (
            ("bound", lambda one, counts: float(one.loss({"mark_counts": counts}))),
            ("exact", lambda one, counts: np.mean([count_likelihood(one, each) for each in counts])),
        ):
            for place, one in enumerate((in_turn, longer, joint)):
                found[kind][place].append(float(judge(one, held_out)))
                cells.append(found[kind][place][-1])
        row(seed, *cells, f"{time.process_time() - started:.0f}")
    for kind, losses in found.items():
        summary(f"{name}, {kind}", *losses)


def states() -> None:
    """Four simulated chromosomes of 4,000 bins: three to train on, one held out."""
    sets = []
    for seed in SEEDS:
        adata = dbio.datasets.simulate_chromatin_states(n_bins=16_000, family="negative_binomial", rng=seed)
        chromosomes = adata.obs["chrom"].cat.codes.to_numpy()
        counts = np.stack([np.asarray(adata.X, np.float32)[chromosomes == code] for code in range(4)])
        sets.append((counts[:3], counts[3:]))
    compare_states("states", sets, 7)


def states_real() -> None:
    """Counts of three marks of EpiCSeg's sample, in quarters: another one is held out for each seed."""
    table = np.loadtxt(folder() / "chromatin_states/counts/epicseg_counts_3marks_hg19.txt.gz", skiprows=1)
    quarters = table[: 4 * (len(table) // 4)].reshape(4, -1, 3).astype(np.float32)
    sets = [(np.delete(quarters, 1 + seed % 3, axis=0), quarters[[1 + seed % 3]]) for seed in SEEDS]
    compare_states("states_real", sets, 5)


# Contact decay and background -> loops -------------------------------------------------------------------------------

DECAY = ("decay_correction",)
BACKGROUND = ("log_shrinkage", "background_bias", "log_dispersion", "log_filter_width")
HEAD = ("loop_threshold", "log_loop_temperature")


def maps(number: int, first_seed: int) -> dict[str, np.ndarray]:
    """Bands of simulated maps of 400 bins at 10 kb with the pixels of loops, and their neighbours, marked."""
    from diffbio_sc.numerics.genome.bands_jax import band_of_pixels

    bands, known = [], []
    for seed in range(first_seed, first_seed + number):
        adata = dbio.datasets.simulate_contacts(400, contacts_per_bin=400, max_distance=1_100_000, rng=seed)
        bands.append(band_of_pixels(sp.csr_array(sp.triu(adata.obsp["contacts"])), 111))
        marked = np.zeros_like(bands[-1])
        for i, j in adata.uns["truth"]["loops"][["bin1", "bin2"]].to_numpy():
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di and j + dj < 400 and 0 <= j + dj - i - di < 111:
                        marked[j + dj - i - di, i + di] = 1.0
        known.append(marked)
    return {"contact_band": np.stack(bands).astype(np.float32), "known_loops": np.stack(known).astype(np.float32)}


def loop_loss(operator, batch, key):
    logits = operator({"contact_band": batch["contact_band"][0]})["loop_logits"]
    return binary_cross_entropy(logits, batch["known_loops"][0], logits > -13.9)  # pairs that are not scored have -14


def reconstruction(operator, batch, key):
    return operator.loss({"contact_band": batch["contact_band"][0]})


def loop_and_reconstruction(operator, batch, key):
    # The counts hold the decay where they say something of it: labels alone let it drift.
    return loop_loss(operator, batch, key) + 0.01 * reconstruction(operator, batch, key)


def named(names):
    return nnx.Any(*(nnx.All(nnx.Param, nnx.PathContains(name)) for name in names))


def loops() -> None:
    """Four maps to train on, two to stop by, three held out; all maps anew for each seed."""
    print("\n## loops: cross-entropy of loop pixels on held-out maps, nats for each pair\n")
    heading("seed", "start", "in turn", "in turn, longer", "joint, decay held", "joint", "CPU s")
    found: tuple[list, list, list] = ([], [], [])
    for seed in SEEDS:
        started = time.process_time()
        given, watched, held_out = maps(4, 100 * seed), maps(2, 100 * seed + 50), maps(3, 100 * seed + 70)

        def descend(operator, loss, names, epochs, rate, given=given, watched=watched):
            train(
                operator, given, loss=loss, wrt=named(names), batch_size=1, validation=watched, keep_start=True,
                max_epochs=epochs, learning_rate=rate, patience=8,
            )  # fmt: skip

        def judge(operator, held_out=held_out):
            batches = [{name: values[[one]] for name, values in held_out.items()} for one in range(3)]
            return float(np.mean([float(loop_loss(operator, batch, None)) for batch in batches]))

        config = multiomics.HiCContactAnalysisConfig(hidden_dim=4, n_layers=1, max_distance=1_000_000)
        in_turn = multiomics.HiCContactAnalysis(config, rngs=nnx.Rngs(0))
        start = judge(in_turn)
        descend(in_turn, reconstruction, DECAY, 10, 0.03)
        descend(in_turn, loop_loss, HEAD, 40, 0.1)
        longer, held, joint = (nnx.clone(in_turn) for _ in range(3))
        descend(longer, loop_loss, HEAD, 40, 0.03)
        descend(held, loop_loss, (*BACKGROUND, *HEAD), 40, 0.03)
        descend(joint, loop_and_reconstruction, (*DECAY, *BACKGROUND, *HEAD), 40, 0.03)
        for place, one in enumerate((in_turn, longer, joint)):
            found[place].append(judge(one))
        shown = found[0][-1], found[1][-1], judge(held), found[2][-1]
        row(seed, start, *shown, f"{time.process_time() - started:.0f}")
    summary("loops", *found)


# Coverage smoothing -> peaks -> an expert's labels ------------------------------------------------------------------


def labelled_reads(name: str) -> dict[str, np.ndarray]:
    """Reads in bins of 25 bp, rebuilt from coverage (see peaks.py), and the regions that an expert labelled."""
    import pandas as pd
    from peaks import midpoints

    from diffbio_sc.operators.epigenomics.peak_labels import REGION_KINDS

    with np.load(folder() / "peaks" / f"{name}.npz") as stored:
        samples, low = [str(sample) for sample in stored["samples"]], int(stored["region"][0])
    reads = midpoints(name).astype(np.float32)
    table = pd.read_csv(folder() / "peaks" / f"{name}.labels.tsv", sep="\t", dtype={"sample": str})
    most = int(table["sample"].value_counts().max())
    regions = np.zeros((3, len(samples), most), np.int32)
    regions[0] = -1
    for index, sample in enumerate(samples):
        for place, label in enumerate(table[table["sample"] == sample].itertuples()):
            ends = (label.start - low) // 25, min(-(-(label.end - low) // 25), reads.shape[1])
            regions[:, index, place] = REGION_KINDS.index(label.annotation), *ends
    return {"coverage": reads, "region_kind": regions[0], "region_start": regions[1], "region_end": regions[2]}


def label_loss(longest: int, log_width: float = 0.0, strength: float = 0.0):
    """Of the caller, and a normal prior of the log width about the one found from the reads, as its own have one."""

    def loss(pipeline, batch, key):
        smooth, peaks = pipeline.steps["smooth"], pipeline.steps["peaks"]
        prior = 0.5 * strength * (smooth.log_width[...] - log_width) ** 2
        smoothed = smooth(batch)["smoothed_coverage"]
        return peaks.loss({**batch, "signal": smoothed}, longest_region=longest) + prior

    return loss


def held_out_labels(pipeline: Pipeline, data: dict[str, np.ndarray], longest: int) -> float:
    """Minus the log-probability of a label, without the prior of the parameters that training adds."""
    peaks = pipeline.steps["peaks"]
    number = (data["region_kind"] >= 0).sum()
    return float(label_loss(longest)(pipeline, data, None)) - float(peaks._prior()) / number


def compare_labels(name: str, mode: str, make) -> None:
    """Half of the samples to train on, drawn for each seed, the other half held out."""
    print(f"\n## labels, {name}: minus log-probability of a label on held-out samples, nats\n")
    heading("seed", "start", "in turn", "in turn, longer", "joint", "width in turn, bp", "width joint, bp", "CPU s")
    found: tuple[list, list, list] = ([], [], [])
    for seed in SEEDS:
        started = time.process_time()
        data = make(seed)
        longest = int((data["region_end"] - data["region_start"]).max())
        loss = label_loss(longest)
        order = np.random.default_rng(seed).permutation(len(data["coverage"]))
        half = len(order) // 2
        given, held_out = ({key: values[part] for key, values in data.items()} for part in (order[:half], order[half:]))
        in_turn = Pipeline(
            {
                "smooth": epigenomics.CoverageSmoother(epigenomics.CoverageSmootherConfig(), rngs=nnx.Rngs(0)),
                "peaks": epigenomics.DifferentiablePeakCaller(
                    epigenomics.PeakCallerConfig(num_filters=0, mode=mode), rngs=nnx.Rngs(0)
                ),
            },
            inputs={"peaks": {"signal": "smoothed_coverage"}},
        )
        start = held_out_labels(in_turn, held_out, longest)

        def descend(pipeline, epochs, wrt=nnx.Param, given=given, loss=loss):
            train(pipeline, given, loss=loss, wrt=wrt, batch_size=None, max_epochs=epochs, learning_rate=0.03)

        in_turn.steps["smooth"].fit(given, steps=60)
        descend(in_turn, 40, named(["peaks"]))
        longer, joint = nnx.clone(in_turn), nnx.clone(in_turn)
        descend(longer, 40, named(["peaks"]))
        width, number = float(joint.steps["smooth"].log_width[...]), (given["region_kind"] >= 0).sum()
        descend(joint, 40, loss=label_loss(longest, width, 1.0 / number))
        for place, one in enumerate((in_turn, longer, joint)):
            found[place].append(held_out_labels(one, held_out, longest))
        widths = (f"{one.steps['smooth'].width:.0f}" for one in (in_turn, joint))
        row(seed, start, *(losses[-1] for losses in found), *widths, f"{time.process_time() - started:.0f}")
    summary(f"labels, {name}", *found)


def planted(seed: int, tracks: int = 16, bins: int = 1500) -> dict[str, np.ndarray]:
    """Tracks of weak enrichments with soft edges, and the labels that an expert who knew the truth would give."""
    from diffbio_sc.operators.epigenomics.peak_labels import REGION_KINDS

    rng = np.random.default_rng(seed)
    places = np.arange(bins)
    reads, regions = [], []
    for _ in range(tracks):
        rate, found = np.full(bins, rng.uniform(0.4, 0.8)), []
        for start in range(100, bins - 200, 250):
            low = start + rng.integers(0, 60)
            high = low + rng.integers(16, 48)
            soft = 1 / (1 + np.exp(-(places - low) / 2)) - 1 / (1 + np.exp(-(places - high) / 2))
            rate = rate * (1 + rng.uniform(1.0, 4.0) * soft)
            found += [("peakStart", low - 10, low + 10), ("peakEnd", high - 10, high + 10)]
            found += [("noPeaks", high + 15, high + 90)]
        reads.append(rng.poisson(rate))
        regions.append([(REGION_KINDS.index(kind), *ends) for kind, *ends in found])
    kind, start, end = np.moveaxis(np.array(regions, np.int32), 2, 0)
    return {"coverage": np.array(reads, np.float32), "region_kind": kind, "region_start": start, "region_end": end}


def labels_simulated() -> None:
    compare_labels("simulated", "narrow", planted)


def labels() -> None:
    for name, mode in (("H3K4me3_chr11", "narrow"), ("H3K36me3_TDH_other_chunk1", "broad")):
        compare_labels(name, mode, lambda seed, name=name: labelled_reads(name))


# Deconvolution -> spatial genes beyond composition ------------------------------------------------------------------


class Residuals(Operator):
    """Pearson residuals of counts from what their composition explains."""

    config_class = OperatorConfig
    required_keys = ("spatial_expression", "reconstructed")

    def __call__(self, data):
        mean = jnp.maximum(data["reconstructed"], 1e-3)
        return {"residuals": (data["spatial_expression"] - mean) / jnp.sqrt(mean * (1.0 + 0.05 * mean))}


def tissue(seed: int, genes: int = 100) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two slides of real cells mixed in known shares, seen through one factor for each gene and type."""
    slides = [dbio.datasets.pbmc_tissue(n_spots=225, rng=10 * seed + number) for number in range(2)]
    reference = slides[0][1]
    total = np.asarray(sum(spots.X.sum(0) for spots, _ in slides)).ravel()
    chosen = np.argsort(-total)[:genes]
    types = reference.obs["cell_type"].cat
    profiles = np.stack(
        [
            np.asarray(reference.X[(types.codes == code).to_numpy()].mean(0)).ravel()[chosen]
            for code in range(len(types.categories))
        ]
    )
    rng = np.random.default_rng(seed)
    # What sets the tissue apart from the reference: a factor of each gene, and of each gene in each type.
    factor = rng.lognormal(0, 0.4, genes) * rng.lognormal(0, 0.4, profiles.shape)
    found = []
    for spots, _ in slides:
        shares = spots.obsm["truth"].to_numpy() * spots.obs["n_cells"].to_numpy()[:, None]
        counts = rng.poisson(shares @ (profiles * factor))
        found.append(
            {
                "spatial_expression": counts.astype(np.float32),
                "reference_profiles": (profiles + 1e-3).astype(np.float32),
                "spatial_coords": spots.obsm["spatial"].astype(np.float32),
            }
        )
    return found[0], found[1]


def residuals() -> None:
    """Signatures of one slide, learned so that residuals have least spatial variance; judged on another slide."""
    print("\n## residuals: held-out slide, negative log-likelihood for each count + mean spatial share of residuals\n")
    heading("seed", "start", "in turn", "in turn, longer", "joint", "FSV in turn", "FSV joint", "CPU s")
    found: tuple[list, list, list] = ([], [], [])
    for seed in SEEDS:
        started = time.process_time()
        given, held_out = tissue(seed)
        types, genes = given["reference_profiles"].shape
        in_turn = Pipeline(
            {
                "composition": multiomics.SpatialDeconvolution(
                    multiomics.SpatialDeconvolutionConfig(n_cell_types=types, n_genes=genes, hidden_dim=0),
                    rngs=nnx.Rngs(0),
                ),
                "residuals": Residuals(OperatorConfig(), rngs=nnx.Rngs(0)),
                "genes": multiomics.DifferentiableSpatialGeneDetector(
                    multiomics.SpatialGeneDetectorConfig(n_genes=genes, hidden_dims=(), lengthscale=2.0),
                    rngs=nnx.Rngs(0),
                ),
            },
            inputs={"genes": {"expression": "residuals"}},
            losses={"composition": 1.0, "fsv": 1.0},
        )
        start = float(in_turn.loss(held_out))
        in_turn.fit_in_turn(given, {"residuals": None, "genes": {"steps": 50}})
        longer, joint = nnx.clone(in_turn), nnx.clone(in_turn)
        signatures = named(("log_platform", "log_deviation", "log_dispersion"))
        composition = {name: given[name] for name in ("spatial_expression", "reference_profiles")}
        train(
            longer.steps["composition"], composition, wrt=signatures, batch_size=None,
            sample_keys=["spatial_expression"], max_epochs=60, learning_rate=0.01,
        )  # fmt: skip
        joint.fit(given, wrt=signatures, max_epochs=60, learning_rate=0.01)
        shares = []
        for place, one in enumerate((in_turn, longer, joint)):
            terms = one.loss_terms(held_out)
            found[place].append(float(terms["composition"] + terms["fsv"]))
            shares.append(float(terms["fsv"]))
        row(
            seed, start, *(losses[-1] for losses in found), shares[0], shares[2], f"{time.process_time() - started:.0f}"
        )
    summary("residuals", *found)


# Cells -> latent space -> profiles of types -> spots --------------------------------------------------------------


class TypeProfiles(Operator):
    """Mean of the reconstructed cells of each type.

    Its parameter weighs the cells of a type by where they lie in the latent space: the tissue may be nearer to some of
    them. At the start all weigh the same.
    """

    config_class = OperatorConfig
    required_keys = ("reconstructed", "joint_latent", "cell_types")

    def __init__(self, types: int, latent: int):
        super().__init__(OperatorConfig(), rngs=nnx.Rngs(0))
        self.tilt = nnx.Param(jnp.zeros((types, latent)))

    def __call__(self, data):
        logits = data["joint_latent"] @ self.tilt[...].T
        weights = nnx.softmax(jnp.where(jnp.asarray(data["cell_types"]) > 0, logits, -jnp.inf), axis=0)
        return {"reference_profiles": weights.T @ data["reconstructed"] + 1e-4}


def truth_set(name: str, seed: int):
    """Reference cells with their types as indicators, spots, and the true shares of the types in the spots."""
    import anndata

    spots, cells = (anndata.read_h5ad(folder() / "deconvolution" / name / f"{one}.h5ad") for one in ("spots", "ref"))
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0]
    types = cells.obs["cell_type"].cat
    truth = spots.obsm["truth"].reindex(columns=types.categories).fillna(0.0).to_numpy()
    indicators = np.eye(len(types.categories), dtype=np.float32)[types.codes]
    reference = {"modality_0_counts": cells.X.toarray().astype(np.float32), "cell_types": indicators}
    return reference, spots.X.toarray().astype(np.float32), truth


def two_modalities(seed: int, cells: int = 100, number: int = 160):
    """A hundred cells with RNA and chromatin, and spots of ten other cells each by another assay of RNA."""
    mdata = dbio.datasets.simulate_multiomics(n_cells=cells + 600, n_genes=120, n_peaks=150, rng=seed)
    kind = mdata.obs["cell_type"].astype("category").cat.codes.to_numpy()
    rna, atac = (np.asarray(mdata[name].X, np.float32) for name in ("rna", "atac"))
    rng = np.random.default_rng(seed)
    members = rng.choice(np.arange(cells, cells + 600), (number, 10))
    counts = rng.poisson(rna[members].sum(1) * rng.lognormal(0, 0.5, rna.shape[1]))
    indicators = np.eye(kind.max() + 1, dtype=np.float32)[kind]
    reference = {"rna_counts": rna[:cells], "atac_counts": atac[:cells], "cell_types": indicators[:cells]}
    return reference, counts.astype(np.float32), indicators[members].mean(1)


def compare_spots(name: str, make) -> None:
    """Half of the spots to train on, a quarter to stop by, a quarter held out, drawn for each seed."""
    from diffbio_sc.training.optimizers import Adam

    print(f"\n## spots, {name}: held-out spots, negative log-likelihood for each count; RMSE of proportions\n")
    heading("seed", "in turn", "last step longer", "with free signatures", "joint", "RMSE of each", "CPU s")
    found: tuple[list, list, list] = ([], [], [])
    head = ("log_platform", "log_dispersion")
    for seed in SEEDS:
        started = time.process_time()
        reference, spots, truth = make(seed)
        order = np.random.default_rng(seed).permutation(len(spots))
        parts = np.split(order, [len(order) // 2, 3 * len(order) // 4])
        given, watched, held_out = ({**reference, "spatial_expression": spots[part]} for part in parts)
        (cells, types), genes = reference["cell_types"].shape, spots.shape[1]
        counts = [key for key in reference if key != "cell_types"]
        dims = tuple(reference[key].shape[1] for key in counts)
        in_turn = Pipeline(
            {
                "vae": multiomics.DifferentiableMultiOmicsVAE(
                    multiomics.MultiOmicsVAEConfig(modality_dims=dims, latent_dim=10), rngs=nnx.Rngs(seed)
                ),
                "profiles": TypeProfiles(types, 10),
                "spots": multiomics.SpatialDeconvolution(
                    multiomics.SpatialDeconvolutionConfig(n_cell_types=types, n_genes=genes, hidden_dim=0),
                    rngs=nnx.Rngs(0),
                ),
            },
            inputs={"profiles": {"reconstructed": counts[0].replace("counts", "reconstructed")}},
            # The log-likelihood of all counts, of cells (a bound) and of spots, for each count of the spots.
            losses={"spots": 1.0, "vae": cells / given["spatial_expression"].size},
        )

        def last_step(pipeline, names, epochs, rate, given=given, watched=watched):
            arrays = []
            for data in (given, watched):
                profiles = np.asarray(pipeline(data)["reference_profiles"])
                arrays.append({"spatial_expression": data["spatial_expression"], "reference_profiles": profiles})
            train(
                pipeline.steps["spots"], arrays[0], wrt=named(names), batch_size=None, keep_start=True,
                sample_keys=["spatial_expression"], validation=arrays[1], max_epochs=epochs, learning_rate=rate,
                patience=15,
            )  # fmt: skip

        in_turn.fit_in_turn(given, {"vae": {"rng": seed}, "profiles": None})
        last_step(in_turn, head[1:], 100, 0.1)  # its own fit leaves the dispersion as it is
        longer, free, joint = (nnx.clone(in_turn) for _ in range(3))
        last_step(longer, head, 120, 0.02)
        last_step(free, (*head, "log_deviation"), 120, 0.02)
        whole = {"whole": np.zeros(1, np.float32)}
        train(
            joint, {**given, **whole}, loss=lambda operator, batch, key: operator.loss(batch), batch_size=None,
            sample_keys=["whole"], validation={**watched, **whole}, keep_start=True, max_epochs=120, patience=15,
            optimizer=Adam(0.02, (("steps/vae", 0.3),), 1e-6),
        )  # fmt: skip
        losses, errors = [], []
        for one in (in_turn, longer, free, joint):
            losses.append(float(one.loss_terms(held_out)["spots"]))
            shares = np.asarray(one(held_out)["proportions"])
            errors.append(f"{np.sqrt(((shares - truth[parts[2]]) ** 2).mean(1)).mean():.3f}")
        found[0].append(losses[0])
        found[1].append(min(losses[1:3]))
        found[2].append(losses[3])
        row(seed, *losses, " ".join(errors), f"{time.process_time() - started:.0f}")
    summary(f"spots, {name}", *found)


def spots_simulated() -> None:
    compare_spots("simulated, RNA and chromatin", two_modalities)


def spots() -> None:
    for name in os.environ.get("SETS", "merfish_poa").split(","):
        compare_spots(name, lambda seed, name=name: truth_set(name, seed))


COMMANDS = (states, states_real, loops, labels_simulated, labels, residuals, spots_simulated, spots)

if __name__ == "__main__":
    known = {command.__name__: command for command in COMMANDS}
    chosen = sys.argv[1:] or list(known)
    if wrong := set(chosen) - set(known):
        raise SystemExit(f"unknown: {sorted(wrong)}; commands: {list(known)}")
    for name in chosen:
        known[name]()
