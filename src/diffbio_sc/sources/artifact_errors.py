"""What can be wrong with a file of imported embeddings, each by a name of its own."""

from __future__ import annotations


class ArtifactError(ValueError):
    """A file of embeddings cannot be used; the message says why and what to do."""


class CorruptArtifactError(ArtifactError):
    """The bytes of the file are not what its format asks for, or its values are not finite numbers."""


class TruncatedArtifactError(CorruptArtifactError):
    """The file ends early."""


class UnsafeArtifactError(ArtifactError):
    """Reading the file would run code that it holds (pickled objects), or it is a model's checkpoint."""


class MisalignedArtifactError(ArtifactError):
    """Rows and sample identifiers do not match, within a file or between files."""


class DuplicatedSamplesError(ArtifactError):
    """A sample identifier occurs twice."""
