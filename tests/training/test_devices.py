"""Several devices of one host, and several hosts, give the result of one; each sample is held once in all."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
RUN = HERE / "devices_run.py"
SECONDS = 900  # after which a process is taken to have stopped; nothing is measured


def run(path, *, devices=1, batch_size=16, host=None):
    """Start ``devices_run.py`` with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    environment |= {"JAX_PLATFORMS": "cpu", "DIFFBIO_SC_PROGRESS": "0"}
    arguments = [str(path), str(batch_size), *([] if host is None else map(str, host))]
    command, pipe = [sys.executable, str(RUN), *arguments], subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def finished(*processes):
    """Output of each, after all have ended well."""
    # Each is listened to by a thread of its own: one whose pipe is full would stop, and the others wait for it.
    with ThreadPoolExecutor(len(processes)) as threads:
        outputs = list(threads.map(_listened, processes))
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return ["".join(output) for output in outputs]


def _listened(process):
    try:
        return process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        return output, f"{errors}\nnot done after {SECONDS} s"


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "one.npz"
    (output,) = finished(run(path))
    assert "Training uses" not in output
    assert "450 cells are trained on from disk, in each epoch in 4 parts of at most 128" in output
    return dict(np.load(path))


def assert_equal_runs(found, expected):
    curves = [name for name in expected if name.startswith(("line/", "parts/", "vae/", "stored/"))]
    expected_curves = {"line/loss", "line/validation_loss", "parts/loss", "vae/loss", "vae/validation_nll_1"}
    assert expected_curves | {"stored/loss", "stored/validation_nll_1"} <= set(curves)
    for name in curves:
        assert np.isfinite(expected[name]).all()
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(found["weights"], expected["weights"], rtol=1e-5, atol=1e-6)
    for name in ("embedding", "stored_embedding"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_devices_of_one_host_give_the_result_of_one_and_hold_each_sample_once(tmp_path, one_device, count):
    (output,) = finished(run(tmp_path / "several.npz", devices=count))
    several = dict(np.load(tmp_path / "several.npz"))
    assert (int(one_device["devices"]), int(several["devices"])) == (1, count)
    assert "Training uses" not in output
    assert_equal_runs(several, one_device)
    assert several["sample_bytes"] <= 1.15 * one_device["sample_bytes"]
    np.testing.assert_allclose(several["largest_part"], several["sample_bytes"] / count, rtol=0.1)


@pytest.mark.slow
def test_a_batch_that_the_devices_do_not_divide_is_told(tmp_path, one_device):
    (output,) = finished(run(tmp_path / "three.npz", devices=3))
    assert "Training uses 2 of 3 devices: batches of 16 samples are not divided equally among more" in output
    assert_equal_runs(dict(np.load(tmp_path / "three.npz")), one_device)


@pytest.mark.slow
def test_two_hosts_give_the_result_of_one_device(tmp_path, one_device):
    """Two processes of two devices each, joined by ``jax.distributed``."""
    paths = [tmp_path / f"{number}.npz" for number in range(2)]
    finished(*(run(path, devices=2, host=(tmp_path / "port", number)) for number, path in enumerate(paths)))
    for path in paths:
        found = dict(np.load(path))
        assert int(found["devices"]) == 4
        assert_equal_runs(found, one_device)
        assert found["sample_bytes"] <= 1.15 * one_device["sample_bytes"] / 2
