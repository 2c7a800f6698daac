"""Settings of the peak caller."""

from __future__ import annotations

import dataclasses

from diffbio_sc.numerics.genome.marks import BROAD_BINS, LEVEL_WINDOW, NARROW_BINS
from diffbio_sc.operators.contract import OperatorConfig

__all__ = ["PeakCallerConfig"]

_MODES = ("auto", "narrow", "broad")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeakCallerConfig(OperatorConfig):
    """Settings of :class:`DifferentiablePeakCaller`.

    Parameters
    ----------
    num_filters
        Filters of each scale of the learnable correction; 0 leaves it out. It is exactly 0 until trained.
    kernel_sizes
        Kernel sizes, one for each scale. A scale stacks three convolutions of dilation 1, 5 and 21, which at kernel
        size 7 see 81 positions to either side.
    threshold
        Initial probability at which the soft call is one half. Learnable.
    temperature
        Of the posterior; towards 0 scores and calls become the best path.
    learnable_temperature
        Whether training changes the temperature.
    use_vae_denoising
        Whether the signal is denoised before peaks are called.
    window_size
        Positions that the denoiser encodes together.
    vae_latent_dim, vae_hidden_dim
        Sizes of the denoiser.
    denoising_width
        Initial standard deviation, in base pairs, of the Gaussian smoother that the denoiser corrects.
    min_peak_width
        :meth:`DifferentiablePeakCaller.segments` drops peaks shorter than this, in base pairs.
    bin_width
        Base pairs a position.
    positions_per_read
        How many positions one read counts in: 1 for counts of read ends or midpoints, the fragment length over
        ``bin_width`` for coverage. The signal is divided by it, or the overlap of a read would count many times.
    mode
        ``"narrow"``, ``"broad"``, or ``"auto"``, which decides for each track.
    fold
        Initial enrichment f of peaks over background.
    narrow_penalty, broad_penalty
        Initial cost of a change of state.
    background_windows
        Widths in base pairs of the windows of the background of narrow marks without control.
    control_windows
        The same with a control.
    level_window
        Width in base pairs of the windows whose mixture gives the background of broad marks.
    label_noise
        Share of weak labels taken to be wrong, so that a label that nothing can satisfy does not decide the rest.
    """

    num_filters: int = 32
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    threshold: float = 0.5
    temperature: float = 1.0
    learnable_temperature: bool = True
    use_vae_denoising: bool = False
    window_size: int = 200
    vae_latent_dim: int = 16
    vae_hidden_dim: int = 64
    denoising_width: float = 50.0
    min_peak_width: int = 50
    bin_width: int = 25
    positions_per_read: float = 1.0
    mode: str = "auto"
    fold: float = NARROW_BINS.fold
    narrow_penalty: float = NARROW_BINS.penalty
    broad_penalty: float = BROAD_BINS.penalty
    background_windows: tuple[int, ...] = NARROW_BINS.windows
    control_windows: tuple[int, ...] = NARROW_BINS.control_windows
    level_window: int = LEVEL_WINDOW
    label_noise: float = 0.05

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        self.require_integers("num_filters", "min_peak_width", minimum=0)
        self.require_integers("window_size", "vae_latent_dim", "vae_hidden_dim", "bin_width", "level_window")
        self.require_sizes("kernel_sizes")
        self.require_sizes("background_windows", "control_windows", empty_allowed=True)
        self.require_fractions("threshold", zero_allowed=False, one_allowed=False)
        self.require_positive("temperature", "denoising_width", "positions_per_read", "narrow_penalty", "broad_penalty")
        self.require_booleans("learnable_temperature", "use_vae_denoising")
        self.require_one_of("mode", _MODES)
        self.require_positive("fold")
        self.require("fold", self.fold > 1, "a number above 1")
        self.require_numbers("label_noise")
        self.require("label_noise", 0 <= self.label_noise < 0.5, "a number from 0 to below 0.5")
