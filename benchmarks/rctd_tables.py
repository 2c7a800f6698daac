"""Tabulate the likelihood that rctd-py looks up: python benchmarks/rctd_tables.py tables.npz (about two minutes).

P(Y = k | lambda, sigma) = integral of Poisson(k; lambda * exp(y)) h(y / sigma) / sigma dy, with the package's grid of
lambda and heavy-tailed density h. On a grid of log(lambda) + y the integral is a convolution.
"""

from __future__ import annotations

import sys

import numpy as np
from rctd._likelihood import _get_q_single, _ht_pdf_norm, build_x_vals
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import gammaln

STEP = 4e-3
REACH = 20.0
COUNTS = np.arange(1003)
SIGMAS = [*range(10, 71), *range(72, 201, 2)]


def main(path: str) -> None:
    grid = build_x_vals()
    low, high = np.log(grid[0]) - REACH, np.log(grid[-1]) + REACH
    points = low + STEP * np.arange(int((high - low) / STEP) + 1)
    half = int(REACH / STEP)
    offsets = STEP * np.arange(-half, half + 1)
    size = next_fast_len(len(points) + len(offsets))
    spectra = []
    for start in range(0, len(COUNTS), 100):
        k = COUNTS[start : start + 100, None]
        spectra.append(rfft(np.exp(k * points - np.exp(points) - gammaln(k + 1)), size, axis=1).astype(np.complex128))
    tables = {"X_vals": grid}
    for sigma in SIGMAS:
        density = rfft(_ht_pdf_norm(offsets / (sigma / 100)) / (sigma / 100) * STEP, size)
        rows = []
        for spectrum in spectra:
            mixed = irfft(spectrum * np.conj(density), size, axis=1)
            mixed = np.roll(mixed, half, axis=1)[:, : len(points)]
            rows.extend(np.interp(np.log(grid), points, np.log(np.maximum(row, 1e-300))) for row in mixed)
        tables[f"Q_{sigma}"] = np.array(rows)
    # Against the package's own integration, which takes hours for all entries.
    errors = []
    for sigma in (20, 60, 140):
        for k in (0, 3, 40):
            exact = _get_q_single(grid, k, sigma / 100)
            known = exact > 1e-12
            errors.append(np.abs(np.log(exact[known]) - tables[f"Q_{sigma}"][k][known]).max())
    print(f"largest difference of the log-likelihood from the package's own integration: {max(errors):.2g}")
    np.savez(path, **tables)


if __name__ == "__main__":
    main(sys.argv[1])
