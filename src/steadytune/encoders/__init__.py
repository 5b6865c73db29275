"""Encoders: families, sites in a forward pass, and passes."""

from steadytune.encoders.families import (
    FAMILIES,
    SITES,
    Anatomy,
    SiteUnavailable,
    UnknownFamily,
    checkpointing,
    describe,
)
from steadytune.encoders.passes import PassOutput, PassRunner, VectorSource, ambient_autocast
from steadytune.encoders.randomness import RandomState, borrowed_stream
from steadytune.encoders.sites import Edits, Recording, Sites, states_at
from steadytune.encoders.stability import stability_curve

__all__ = [
    "FAMILIES",
    "SITES",
    "Anatomy",
    "Edits",
    "PassOutput",
    "PassRunner",
    "RandomState",
    "Recording",
    "SiteUnavailable",
    "Sites",
    "UnknownFamily",
    "VectorSource",
    "ambient_autocast",
    "borrowed_stream",
    "checkpointing",
    "describe",
    "stability_curve",
    "states_at",
]
