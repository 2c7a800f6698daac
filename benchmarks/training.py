"""The training loop: what the optimiser on vectors saves against those of optax.

``python benchmarks/training.py adam`` trains the multi-omics VAE on simulated counts with each optimiser, in a process
of its own without a cache of compiled code, and prints seconds of CPU: of the first epoch (compilation), of each
further one, and of a first epoch at other learning rates.

``python benchmarks/training.py passes`` says what the programs cost of an epoch and of an evaluation, and each step of
them, where XLA makes all of its passes over the machine code of a CPU and where it makes those of
``diffbio_sc._compiled.jit_quickly``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

CELLS, DIMS = 2000, (600, 900)
OPTIMISERS = {
    "Adam on vectors, rates by part": "Adam(rate, factors=(('encoders', 0.1), ('decoders/0', 0.5)))",
    "optax.adam, one rate": "optax.adam(rate)",
    "optax.flatten(optax.adam), one rate": "optax.flatten(optax.adam(rate))",
    "optax.partition of three optax.adam, rates by part": "by_part(rate)",
}


def measure(expression: str) -> None:
    """Train in this process and print the figures as JSON."""
    import jax
    import numpy as np
    import optax
    from flax import nnx

    from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
    from diffbio_sc.operators.multiomics.multiomics_vae import fitting
    from diffbio_sc.training import Adam, train
    from diffbio_sc.training.storage import flatten

    def by_part(rate: float):
        def labels(tree):
            kinds = [
                "encoders" if path.startswith("encoders") else "first" if path.startswith("decoders/0") else "rest"
                for path in flatten(tree)
            ]
            return jax.tree.unflatten(jax.tree.structure(tree), kinds)

        rates = {"encoders": 0.1 * rate, "first": 0.5 * rate, "rest": rate}
        return optax.partition({name: optax.adam(value) for name, value in rates.items()}, labels)

    rng = np.random.default_rng(0)
    matrices = [rng.poisson(rng.gamma(0.3, 1.0, (CELLS, size))).astype(np.float32) for size in DIMS]
    vae = DifferentiableMultiOmicsVAE(MultiOmicsVAEConfig(modality_dims=DIMS, latent_dim=20), rngs=nnx.Rngs(0))
    matrices, present, batch = vae._check_matrices(matrices, None, None)
    data, of_cells, _, loss = fitting.training_data(vae, matrices, present, batch, None, 128)

    def seconds(rate: float, epochs: int) -> float:
        names = {"Adam": Adam, "optax": optax, "by_part": by_part, "rate": rate}
        operator, started = nnx.clone(vae), time.process_time()
        train(
            operator, data, loss=loss, weighted=True, sample_keys=of_cells, optimizer=eval(expression, names),
            batch_size=128, stratified=True, max_epochs=epochs,
        )  # fmt: skip
        return time.process_time() - started

    first, other, longer = seconds(1e-3, 1), seconds(2e-3, 1), seconds(3e-3, 9)
    # Each call but those of Adam compiles anew, for its rates: the difference is eight epochs.
    print(json.dumps({"first": first, "epoch": (longer - other) / 8, "other": other}))


def measure_passes(cells: int = 1280, dims: tuple[int, int] = (1677, 7374)) -> None:
    """CPU seconds of compilation, and milliseconds of a step, on counts as sparse as those of SNARE."""
    import jax
    import numpy as np
    import scipy.sparse as sp
    from flax import nnx

    from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
    from diffbio_sc.operators.multiomics.multiomics_vae import fitting
    from diffbio_sc.training import epoch, loop

    rng = np.random.default_rng(0)
    rates = [rng.gamma(0.3, 1.0, size) for size in dims]
    reads = zip(rates, (220, 85), strict=True)
    counts = [rng.poisson(number * rate / rate.sum(), (cells, len(rate))) for rate, number in reads]
    matrices = [sp.csr_array(one.astype(np.float32)) for one in counts]
    vae = DifferentiableMultiOmicsVAE(MultiOmicsVAEConfig(modality_dims=dims, latent_dim=30), rngs=nnx.Rngs(0))
    present, batch, held_out = np.ones((cells, 2), bool), np.zeros(cells, np.int32), np.arange(0, cells, 2)
    data, of_cells, held_out, loss = fitting.training_data(vae, matrices, present, batch, held_out, 128)
    rated = {"all": {}, "fewer": {}}  # by what is run: its first time, then the others
    whole = {"static_argnames": ("plan",), "donate_argnames": ("variables",)}
    alone = {"static_argnames": ("plan", "batch_size", "remainder")}
    programs = {
        "all": (jax.jit(epoch.run_epoch.__wrapped__, **whole), jax.jit(epoch._evaluate.__wrapped__, **alone)),
        "fewer": (epoch.run_epoch, epoch._evaluate),
    }

    def timed(function, label: str):
        def run(*arguments, **options):
            started = time.process_time()
            result = jax.block_until_ready(function(*arguments, **options))
            kind = "evaluation" if options else "epoch" if arguments[-1] else "by the epoch"
            rated[label].setdefault(kind, []).append(time.process_time() - started)
            return result

        return run

    for _ in range(8):  # by turns, so that what else the machine does meets both
        for label, (run_epoch, evaluate) in programs.items():
            loop.run_epoch, epoch._evaluate = timed(run_epoch, label), timed(evaluate, label)
            for few in (0, cells):  # with a program of their own for evaluations, and without
                loop._FEW_BATCHES = few
                loop.train(
                    nnx.clone(vae), data, loss=loss, weighted=True, sample_keys=of_cells, batch_size=128,
                    stratified=True, max_epochs=2, validation=held_out,
                )  # fmt: skip
    for kinds in rated.values():
        least = {kind: min(times[1:]) for kind, times in kinds.items()}
        compiled = {kind: times[0] - least[kind] for kind, times in kinds.items()}
        steps = {kind: 1e3 * seconds / (cells // 256) for kind, seconds in least.items()}
        row = [compiled["epoch"], steps["epoch"], compiled["evaluation"], steps["evaluation"], steps["by the epoch"]]
        print(json.dumps(row))


def passes(options) -> None:
    """Compare all passes over the machine code with fewer."""
    print("\n## passes: multi-omics VAE of 1,677 genes and 7,374 peaks, 128 cells a step\n")
    print(
        "| passes | epoch: compilation, CPU s | a step, ms | evaluation: compilation | a step | by the epoch's code |"
    )
    print("|---|---|---|---|---|---|")
    for label, row in zip(("all", "fewer"), in_another_process("measure_passes()")[-2:], strict=True):
        print(f"| {label} | {' | '.join(f'{x:.1f}' for x in row)} |", flush=True)


def in_another_process(call: str) -> list:
    """Lines that a function of this file prints, in a process without a cache of compiled code."""
    here = os.path.dirname(os.path.abspath(__file__))
    code = f"import sys; sys.path.insert(0, {here!r}); import training as benchmark; benchmark.{call}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    return [json.loads(line) for line in run.stdout.splitlines()]


def adam(options) -> None:
    """Compare the optimisers."""
    print(f"\n## adam: {CELLS:,} cells, {DIMS[0]} + {DIMS[1]} features, CPU seconds\n")
    print("| optimiser | first epoch | each further epoch | first epoch at other rates |\n|---|---|---|---|")
    for name, expression in OPTIMISERS.items():
        row = in_another_process(f"measure({expression!r})")[-1]
        print(f"| {name} | {row['first']:.1f} | {row['epoch']:.2f} | {row['other']:.1f} |", flush=True)


if __name__ == "__main__":
    parts = {"adam": adam, "passes": passes}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all without")
    given = parser.parse_args()
    for part in given.parts or parts:
        parts[part](given)
