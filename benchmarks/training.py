"""The training loop: what the optimiser on vectors saves against those of optax.

``python benchmarks/training.py adam`` trains the multi-omics VAE on simulated counts with each optimiser, in a process
of its own without a cache of compiled code, and prints seconds of CPU: of the first epoch (compilation), of each
further one, and of a first epoch at other learning rates.
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


def adam(options) -> None:
    """Compare the optimisers."""
    print(f"\n## adam: {CELLS:,} cells, {DIMS[0]} + {DIMS[1]} features, CPU seconds\n")
    print("| optimiser | first epoch | each further epoch | first epoch at other rates |\n|---|---|---|---|")
    for name, expression in OPTIMISERS.items():
        here = os.path.dirname(os.path.abspath(__file__))
        code = (
            f"import sys; sys.path.insert(0, {here!r}); import training as benchmark; benchmark.measure({expression!r})"
        )
        environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
        run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
        row = json.loads(run.stdout.splitlines()[-1])
        print(f"| {name} | {row['first']:.1f} | {row['epoch']:.2f} | {row['other']:.1f} |", flush=True)


if __name__ == "__main__":
    parts = {"adam": adam}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all without")
    given = parser.parse_args()
    for part in given.parts or parts:
        parts[part](given)
