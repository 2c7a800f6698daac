"""Settings of the contextual sequence model."""

from __future__ import annotations

import dataclasses

from diffbio_sc.operators.contract import OperatorConfig

__all__ = ["ContextualEpigenomicsConfig"]

#: What the guidance term compares with the contact map.
GUIDANCE_FORMS = ("contact_head", "embedding_similarity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextualEpigenomicsConfig(OperatorConfig):
    """Settings of :class:`ContextualEpigenomicsOperator`.

    Parameters
    ----------
    hidden_dim
        Width of the embedding of a token.
    num_layers
        Number of attention blocks.
    num_heads
        Number of attention heads; ``hidden_dim / num_heads`` must be a whole, even number.
    intermediate_dim
        Width of the feed-forward layer of a block.
    max_length
        Longest sequence in bases that is accepted.
    num_tf_features
        Number of transcription-factor features of a context.
    num_outputs
        Outputs per position: 1 is a yes-or-no label, more are classes.
    use_tf_context
        Whether predictions depend on ``data["tf_context"]``.
    use_chromatin_guidance
        Whether ``data["chromatin_contacts"]`` guides training, through a loss term.
    chromatin_guidance_weight
        Weight of that term in the total loss.
    use_contact_input
        Whether ``data["chromatin_contacts"]`` are an input: a bias of the attention of every block, which each head
        takes part in by a learned factor that starts at 0.
    guidance
        ``"contact_head"``: cross-entropy of contacts predicted from the tokens. ``"embedding_similarity"``: mean
        squared difference of (1 + cosine) / 2 of two tokens' embeddings and their contact.
    token_width
        Bases that are pooled into one token; per-position outputs are per token.
    stem_filters
        Number of filters that read the sequence, each on both strands.
    stem_width
        Their width in bases, an odd number.
    attention_window
        Tokens attend to each other if they are less than this many tokens apart.
    context_dim, readout_dim, contact_dim
        Widths of the code of a context, of the layer that it acts on, and of the vectors whose product predicts a
        contact.
    dropout_rate
        Share of activations left out in training; evaluation leaves out none.
    average_strands
        Whether evaluation averages both strands, so that a sequence and its reverse complement give the same
        prediction. Training reads one strand of each sequence, at random.
    """

    hidden_dim: int = 64
    num_layers: int = 2
    num_heads: int = 4
    intermediate_dim: int = 256
    max_length: int = 512
    num_tf_features: int = 8
    num_outputs: int = 1
    use_tf_context: bool = True
    use_chromatin_guidance: bool = False
    chromatin_guidance_weight: float = 0.1
    use_contact_input: bool = False
    guidance: str = "contact_head"
    token_width: int = 1
    stem_filters: int = 64
    stem_width: int = 15
    attention_window: int = 512
    context_dim: int = 32
    readout_dim: int = 32
    contact_dim: int = 32
    dropout_rate: float = 0.1
    average_strands: bool = True

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        self.require_integers("hidden_dim", "num_layers", "num_heads", "intermediate_dim", "max_length")
        self.require_integers("num_tf_features", "num_outputs", "token_width", "stem_filters", "stem_width")
        self.require_integers("attention_window", "context_dim", "readout_dim", "contact_dim")
        self.require_booleans("use_tf_context", "use_chromatin_guidance", "use_contact_input", "average_strands")
        self.require_positive("chromatin_guidance_weight", zero_allowed=True)
        self.require_fractions("dropout_rate", one_allowed=False)
        self.require_one_of("guidance", GUIDANCE_FORMS)
        self.require(
            "num_heads",
            self.hidden_dim % (2 * self.num_heads) == 0,
            f"such that hidden_dim / num_heads is a whole, even number (hidden_dim is {self.hidden_dim})",
        )
        self.require("stem_width", self.stem_width % 2 == 1, "an odd number")
        self.require("token_width", self.token_width <= self.max_length, f"at most max_length, {self.max_length}")
