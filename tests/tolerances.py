"""How far a value may be from what it should be, per dtype; no test has a number of its own."""

import torch

PRINTED = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Absolute, against a table printed with six or more decimals."""

SAME = {torch.float64: 1e-10, torch.float32: 2e-5}
"""Absolute and relative, for one value computed along two roads."""

REPLAYED = 1e-12
"""Absolute and relative, float64: the same operations once more, as in a recomputed pass."""

LINEAR = 1e-3
"""Relative, float64: what a small step leaves of the second order."""

ROUNDED = {torch.bfloat16: 1e-4, torch.float16: 1e-4}
"""Relative, for a loss whose inputs come in this dtype and which is computed in float32."""

ENCODER_ROUNDED = {torch.bfloat16: 0.05}
"""Relative, for a loss of a tiny encoder that ran under autocast to this dtype."""

OTHER_ENCODER = 2e-3
"""Absolute, for a noise ratio near 0.05 of one random encoder against that of another; twice their spread."""

STANDARD_ERRORS = 5.0
"""For a mean over random draws; a fixed seed makes the outcome the same in every run."""

HALF_A_DIGIT = 0.5
"""In units of the last digit that a source prints: what its rounding may hide."""

MINIMIZED = 1e-6
"""Relative, float64: where a search found a minimum; within the root of its rounding a smooth function is flat."""
