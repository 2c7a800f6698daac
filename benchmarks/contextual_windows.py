"""The contextual sequence model on windows with planted truth, composed3d: labels along 1,024 bases in 14 cell types.

    python benchmarks/contextual_windows.py variants --seeds 5     # ablation: scores, paired intervals, CPU seconds
    python benchmarks/contextual_windows.py attribution            # bases and factors against the planted motifs
    python benchmarks/contextual_windows.py speed                  # mutagenesis of 100 regions, contexts, memory
    python benchmarks/contextual_windows.py stem                   # why the filters' gradient is written out
    python benchmarks/contextual_windows.py choose                 # settings, on windows cut from the training windows

The data are those of DIFFBIO_SC_DATA (contextual/composed3d.npz): the first 1,600 windows train, the last 600 test. All
choices (epochs, rates, sizes) were made on windows 1,400 to 1,600, with windows 0 to 1,400 to train on; the test
windows are read by ``variants`` alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

TRAIN, TEST, VALIDATION = slice(0, 1600), slice(2400, 3000), slice(1400, 1600)
VARIANTS = ("sequence_only", "tf_context", "tf_plus_chromatin", "measured_contacts")
EPOCHS = 30
SIZES = {"max_length": 1024, "token_width": 32, "stem_width": 19, "stem_filters": 24, "intermediate_dim": 128}
TRAINING = {"batch_size": 16, "learning_rate": 3e-3, "average": 0.99}
GUIDANCE_WEIGHT = 0.5


def load():
    path = Path(os.environ["DIFFBIO_SC_DATA"]) / "contextual" / "composed3d.npz"
    with np.load(path, allow_pickle=True) as file:
        return {name: file[name] for name in file.files}


def cpu():
    return time.process_time()


def config_of(variant, **changes):
    from diffbio_sc.operators.epigenomics import ContextualEpigenomicsConfig

    return ContextualEpigenomicsConfig(
        **{
            **SIZES,
            "use_tf_context": variant != "sequence_only",
            "use_chromatin_guidance": variant == "tf_plus_chromatin",
            "use_contact_input": variant == "measured_contacts",
            "chromatin_guidance_weight": GUIDANCE_WEIGHT,
            **changes,
        }
    )


def fit(data, variant, seed, *, epochs=None, **changes):
    """Train on the training windows; the last 200 of them choose the epoch."""
    from diffbio_sc.engines.contextual_windows import fit_windows

    needs = variant in ("tf_plus_chromatin", "measured_contacts")
    training = {name: changes.pop(name) for name in list(changes) if name in (*TRAINING, "filter_rate")}
    return fit_windows(
        data["tok"][TRAIN],
        data["Y"][TRAIN],
        config_of(variant, **changes),
        tf_context=None if variant == "sequence_only" else data["E"],
        contacts=data["M"][TRAIN] if needs else None,
        validation=np.arange(1600)[VALIDATION],
        max_epochs=epochs or EPOCHS,
        rng=seed,
        **{**TRAINING, **training},
    )


def consistency(predicted, contacts):
    """Spearman correlation of predicted and true contacts, both less the mean of their distance."""
    contacts = contacts.astype(np.float64)
    row, column = np.triu_indices(contacts.shape[1], 1)
    values = [np.array(one[:, row, column], np.float64) for one in (predicted, contacts)]
    for one in values:
        for distance in range(1, contacts.shape[1]):
            one[:, column - row == distance] -= one[:, column - row == distance].mean()
    return float(stats.spearmanr(values[0].ravel(), values[1].ravel()).statistic)


def score(model, data, variant, rows):
    contacts = data["M"][rows] if variant == "measured_contacts" else None
    logits = model.predict(data["tok"][rows], contacts=contacts)
    found = {"auprc": float(average_precision_score(data["Y"][rows].ravel(), logits.ravel()))}
    if variant != "measured_contacts":
        found["consistency"] = consistency(model.predict_contacts(data["tok"][rows]), data["M"][rows])
    return found


def run_variants(options):
    data = load()
    rows = TEST if options.command == "variants" else VALIDATION
    name = "test" if options.command == "variants" else "validation"
    for seed in range(options.first, options.first + options.seeds):
        for variant in options.only or VARIANTS:
            started = cpu()
            model = fit(data, variant, seed)
            found = {"variant": variant, "seed": seed, **score(model, data, variant, rows), "on": name}
            found["cpu_seconds"] = cpu() - started
            found["best_epoch"] = int(np.argmin(model.report["history"]["validation_loss"]))
            line = json.dumps(
                {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
            )
            print(line, flush=True)
            if options.out:
                with open(options.out, "a") as file:
                    file.write(line + "\n")
    if options.out:
        summarise(options)


def summarise(options):
    """Means over seeds, and paired differences with intervals of Student's t."""
    with open(options.out) as file:
        lines = [json.loads(line) for line in file]
    table = {(line["variant"], line["seed"]): line for line in lines}
    for variant in VARIANTS:
        own = [line for (name, _), line in table.items() if name == variant]
        if not own:
            continue
        means = {
            key: np.mean([line[key] for line in own])
            for key in ("auprc", "consistency", "cpu_seconds")
            if key in own[0]
        }
        print(f"{variant:20s} {len(own)} seeds  " + "  ".join(f"{key} {value:.3f}" for key, value in means.items()))
    for better, worse in (
        ("tf_context", "sequence_only"),
        ("tf_plus_chromatin", "tf_context"),
        ("measured_contacts", "tf_context"),
    ):
        for key in ("auprc", "consistency"):
            seeds = [seed for name, seed in table if name == better and (worse, seed) in table]
            pairs = [
                table[better, seed][key] - table[worse, seed][key]
                for seed in seeds
                if key in table[better, seed] and key in table[worse, seed]
            ]
            if len(pairs) > 1:
                half = stats.t.ppf(0.975, len(pairs) - 1) * np.std(pairs, ddof=1) / np.sqrt(len(pairs))
                print(f"{better} - {worse}: {key} {np.mean(pairs):+.3f} +- {half:.3f} ({len(pairs)} paired seeds)")


def motif_widths(data):
    """Width of each planted motif: one may begin at any base of its bin that leaves room for it."""
    starts, factor = data["info"][:, 3] % 32, data["info"][:, 2]
    return np.array([32 - starts[factor == number].max() for number in range(len(data["enh"]))])


def attribution(options):
    """Rank bases of planted elements that are gated and expressed over those around, by what substituting them does."""
    from diffbio_sc.engines.attributions import factor_contributions, window_gradients, window_mutagenesis
    from diffbio_sc.engines.sequence_attributions import contributions, importance

    data = load()
    widths, reach = motif_widths(data), 32
    info = data["info"][(data["info"][:, 0] >= TEST.start) & (data["info"][:, 4] == 1)]
    span = 2 * reach + int(widths.max())
    info = info[(info[:, 3] >= reach) & (info[:, 3] + span - reach <= 1024)]
    info = info[data["act"][info[:, 2]].any(1)]
    info = info[np.random.default_rng(0).permutation(len(info))[: options.elements]]
    tokens, cell = data["tok"][info[:, 0]], data["act"][info[:, 2]].argmax(1)
    rows, first = np.arange(len(info)), info[:, 3] - reach
    place = np.arange(span)
    truth = (place >= reach) & (place < reach + widths[info[:, 2]][:, None])
    taken = place < 2 * reach + widths[info[:, 2]][:, None]  # as many bases behind a motif as before it
    column = np.array([list(data["tf"]).index(name) for name in data["enh"]])[info[:, 2]]
    for seed in range(options.first, options.first + options.seeds):
        model = fit(data, "tf_plus_chromatin", seed)
        started = cpu()
        scores = {"mutagenesis": window_mutagenesis(model, tokens, position=info[:, 1], first=first, width=span)}
        seconds = cpu() - started
        bases = first[:, None] + place
        gradient = window_gradients(model, tokens, position=info[:, 1])
        scores["gradient"] = np.stack([gradient[row][:, bases[row]] for row in rows])
        seen = np.take_along_axis(tokens, bases, 1)
        for name, found in scores.items():
            for measure, values in (("importance", importance(found)), ("contribution", contributions(found, seen))):
                values = values[rows, cell]
                pooled = roc_auc_score(truth[taken], values[taken])
                each = np.mean([roc_auc_score(truth[row][taken[row]], values[row][taken[row]]) for row in rows])
                print(
                    f"seed {seed}, {name}, {measure}: AUROC of motif bases {pooled:.3f} pooled, {each:.3f} by element"
                )
        print(f"seed {seed}: {seconds:.1f} CPU s of {len(rows)} x {span} bases x 14 cell types")
        factors = factor_contributions(model, tokens, data["E"], position=info[:, 1])[rows, cell]
        rank = (factors > factors[rows, column][:, None]).sum(1)
        print(f"seed {seed}: the element's own factor has median rank {np.median(rank) + 1:.0f} of {factors.shape[1]}")
    ceiling = planted_contributions(data, info, widths)
    values = np.zeros(truth.shape)
    values[truth] = np.concatenate(ceiling)
    print(f"contribution by the motif itself: AUROC {roc_auc_score(truth[taken], values[taken]):.3f}")


def planted_contributions(data, info, widths):
    """Log-odds of the letters of each element by its own motif, which all planted elements are aligned to.

    The most that any contribution of letters can tell: a motif's sites hold letters that it does not like.
    """
    letters = np.eye(4)
    background = np.bincount(data["tok"].ravel(), minlength=4)[:4] / data["tok"].size
    motifs = []
    for number, width in enumerate(widths):
        sites = data["info"][data["info"][:, 2] == number]
        ahead = letters[data["tok"][sites[:, 0][:, None], sites[:, 3][:, None] + np.arange(width)]]
        back = ahead[:, ::-1, ::-1]
        share = ahead[0] * 0.8 + 0.05  # which strand a site stands on is found by expectation maximisation
        for _ in range(50):
            odds = np.einsum("nlc,lc->n", ahead - back, np.log(share))
            weight = 1 / (1 + np.exp(-odds))
            share = np.einsum("n,nlc->lc", weight, ahead) + np.einsum("n,nlc->lc", 1 - weight, back) + 1.0
            share /= share.sum(1, keepdims=True)
        motifs.append(np.log(share / background))
    result = []
    for window, _, number, start, _ in info:
        site, motif = letters[data["tok"][window, start : start + widths[number]]], motifs[number]
        turned = motif[::-1, ::-1]
        motif = motif if (site * motif).sum() > (site * turned).sum() else turned
        result.append((site * (motif - motif.mean(1, keepdims=True))).sum(1))
    return result


def speed(options):
    """Mutagenesis of 100 regions of 100 bases in 14 cell types."""
    from flax import nnx

    from diffbio_sc.engines.attributions import window_mutagenesis
    from diffbio_sc.engines.contextual_windows import ContextMap, WindowModel
    from diffbio_sc.operators.epigenomics import ContextualEpigenomicsConfig, ContextualEpigenomicsOperator

    draws = np.random.default_rng(0)
    expression = draws.normal(size=(14, 398))
    context_map = ContextMap.of(expression)
    contexts = context_map(expression)
    config = ContextualEpigenomicsConfig(max_length=100, token_width=10, num_tf_features=contexts.shape[1])
    operator = ContextualEpigenomicsOperator(config, rngs=nnx.Rngs(0))
    model = WindowModel(operator, context_map, contexts, 14, {})
    tokens = draws.integers(0, 4, (100, 100)).astype(np.int8)
    for what in ("first call, with compilation", "second call"):
        started, wall = cpu(), time.perf_counter()
        window_mutagenesis(model, tokens)
        print(
            f"100 x 100 bases x 14 cell types, {what}: {cpu() - started:.1f} CPU s, {time.perf_counter() - wall:.1f} s"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def stem(options):
    """Gradient of the filters inside a loop, by XLA's convolution and by the best positions."""
    import jax
    import jax.numpy as jnp

    from diffbio_sc.operators.epigenomics.contextual.stem import _scores_by_token, best_matches

    draws = np.random.default_rng(0)
    sequence = jax.nn.one_hot(draws.integers(0, 4, (64, 1024)), 4)
    kernel = jnp.asarray(draws.normal(size=(19, 4, 64)), jnp.float32)
    mask = jnp.ones((64, 1024), bool)
    for name, function in (
        ("convolution", lambda kernel: (_scores_by_token(sequence, kernel, mask, 32).max(2) ** 2).mean()),
        ("best positions", lambda kernel: (best_matches(sequence, kernel, mask, 32) ** 2).mean()),
    ):
        slope = jax.grad(function)
        steps = jax.jit(lambda kernel, slope=slope: jax.lax.fori_loop(0, 2, lambda _, k: k - 1e-3 * slope(k), kernel))
        jax.block_until_ready(steps(kernel))
        started = cpu()
        jax.block_until_ready(steps(kernel))
        print(f"{name}: {(cpu() - started) / 2:.3f} CPU s a step")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["variants", "choose", "summary", "attribution", "speed", "stem"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--only", nargs="*", choices=VARIANTS)
    parser.add_argument("--elements", type=int, default=120)
    parser.add_argument("--out", help="file to add the lines of runs to, for the summary over all of them")
    options = parser.parse_args()
    commands = {"variants": run_variants, "choose": run_variants, "summary": summarise}
    commands |= {"attribution": attribution, "speed": speed, "stem": stem}
    commands[options.command](options)


if __name__ == "__main__":
    main()
