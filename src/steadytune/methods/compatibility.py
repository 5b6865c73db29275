"""Which methods go together: one table, read by the wrapper and by the page of the documentation that shows it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from steadytune.methods.settings import MethodError

CORE = ("scl", "cat", "hype", "lnsr", "asa")
"""The methods of the five papers; all others are their rivals and companions."""

Verdict = Literal["allowed", "redundant", "rule", "forbidden"]


@dataclass(frozen=True)
class Pairing:
    """What is known about two methods in one stack.

    Attributes:
        verdict: "allowed" they do not touch each other, "redundant" they do the same twice, "rule" it works with the
            rule that `why` states and the step follows, "forbidden" refused.
        why: one clause.
        claimed: a paper reports the combination.
    """

    verdict: Verdict
    why: str = ""
    claimed: bool = False


_SHARED_LABELS = "the label loss is the mean over the passes of both, so each term keeps its ratio to it"
_TWO_RESPONSES = "both punish the response to noise, one of scores, one of states; tune one at a time"
_EDITS = "its noise is on in passes that carry a loss, off in those that look for a direction, replayed with dropout"
_NO_CLEAN = "FreeLB has no clean pass, so the other method's costs one more"
_NOT_OWN = "the adversary of ASA is left out"
_FROZEN = "under LoRA the pre-trained weights do not move"
_TWICE = "the whole step, with all its passes, is computed twice"
_OWN_PASS = "the mixed pass has the label loss; the other method's clean pass is one more"
_NEW_ANCHOR = "new layers are anchored at their new values"
_NOISY_ANCHOR = "weights are anchored after the noise"
_HELD = "mask: update holds masked entries against this pull as well; mask: grad does not"
_ONE_ASCENT = "both climb the label loss at the embeddings; choose one"

_PAIRINGS: dict[tuple[str, str], Pairing] = {
    ("hype", "rdrop"): Pairing("rule", "the noise is on in both passes; some dropout must be left", claimed=True),
    ("hype", "r3f"): Pairing("rule", "the noise of HyPe is on in both passes, unless r3f.same_dropout", claimed=True),
    ("hype", "child_tuning"): Pairing("allowed", claimed=True),
    ("hype", "noisytune"): Pairing("allowed", claimed=True),
    ("cat", "rdrop"): Pairing("rule", _SHARED_LABELS),
    ("asa", "rdrop"): Pairing("rule", _SHARED_LABELS),
    ("cat", "r3f"): Pairing("rule", _SHARED_LABELS),
    ("lnsr", "r3f"): Pairing("rule", _TWO_RESPONSES),
    ("cat", "pgd"): Pairing("redundant", "CAT is one such step and a contrast"),
    ("hype", "pgd"): Pairing("rule", _EDITS),
    ("asa", "pgd"): Pairing("rule", _SHARED_LABELS),
    ("scl", "freelb"): Pairing("rule", _NO_CLEAN),
    ("cat", "freelb"): Pairing("rule", _NO_CLEAN),
    ("hype", "freelb"): Pairing("rule", _EDITS),
    ("lnsr", "freelb"): Pairing("rule", _NO_CLEAN),
    ("asa", "freelb"): Pairing("rule", _NO_CLEAN),
    ("cat", "smart"): Pairing("rule", _SHARED_LABELS),
    ("hype", "smart"): Pairing("rule", _EDITS),
    ("asa", "smart"): Pairing("rule", "neither touches the other's pass"),
    ("lnsr", "mixout"): Pairing("rule", "the resumed pass uses the mixed weights of the clean pass"),
    ("asa", "mixout"): Pairing("rule", _NOT_OWN),
    ("asa", "child_tuning"): Pairing("rule", _NOT_OWN),
    ("asa", "l2sp"): Pairing("rule", _NOT_OWN),
    ("asa", "recadam"): Pairing("rule", _NOT_OWN),
    ("asa", "llrd"): Pairing("rule", _NOT_OWN),
    ("asa", "averaging"): Pairing("rule", _NOT_OWN),
    ("cat", "neftune"): Pairing("rule", _EDITS),
    ("lnsr", "neftune"): Pairing("rule", _EDITS),
    ("cat", "lora"): Pairing("rule", "the perturbation is added to what the frozen matrix gives"),
    ("scl", "sam"): Pairing("rule", _TWICE),
    ("cat", "sam"): Pairing("rule", _TWICE),
    ("hype", "sam"): Pairing("rule", "the whole step is computed twice, with the same noise"),
    ("lnsr", "sam"): Pairing("rule", _TWICE),
    ("asa", "sam"): Pairing("rule", "the whole step is computed twice; the adversary of ASA stays where it is"),
    ("scl", "tmix"): Pairing("rule", _OWN_PASS),
    ("cat", "tmix"): Pairing("rule", _SHARED_LABELS),
    ("lnsr", "tmix"): Pairing("rule", _OWN_PASS),
    ("asa", "tmix"): Pairing("rule", _OWN_PASS),
    ("freelb", "pgd"): Pairing("forbidden", _ONE_ASCENT),
    ("lora", "l2sp"): Pairing("forbidden", _FROZEN),
    ("lora", "recadam"): Pairing("forbidden", _FROZEN),
    ("lora", "mixout"): Pairing("forbidden", _FROZEN),
    ("lora", "child_tuning"): Pairing("forbidden", _FROZEN),
    ("lora", "topk"): Pairing("forbidden", _FROZEN),
    ("lora", "reinit"): Pairing("forbidden", "under LoRA the new layers would stay random"),
    ("l2sp", "mixout"): Pairing("redundant", "both pull towards the pre-trained weights"),
    ("l2sp", "recadam"): Pairing(
        "forbidden", "both pull towards the pre-trained weights, and RecAdam would anneal the other's pull; choose one"
    ),
    ("recadam", "mixout"): Pairing("redundant", "both pull towards the pre-trained weights"),
    ("l2sp", "child_tuning"): Pairing("rule", _HELD),
    ("recadam", "child_tuning"): Pairing("rule", _HELD),
    ("mixout", "reinit"): Pairing("rule", "new layers are mixed with their new values"),
    ("mixout", "noisytune"): Pairing("rule", "weights are mixed with their values after the noise"),
    ("topk", "reinit"): Pairing("rule", "refused where a layer would be both drawn anew and frozen"),
    ("l2sp", "reinit"): Pairing("rule", _NEW_ANCHOR),
    ("recadam", "reinit"): Pairing("rule", _NEW_ANCHOR),
    ("l2sp", "noisytune"): Pairing("rule", _NOISY_ANCHOR),
    ("recadam", "noisytune"): Pairing("rule", _NOISY_ANCHOR),
    ("rdrop", "pgd"): Pairing("rule", _SHARED_LABELS),
    ("rdrop", "freelb"): Pairing("rule", _SHARED_LABELS),
    ("tmix", "rdrop"): Pairing("rule", _SHARED_LABELS),
    ("tmix", "pgd"): Pairing("rule", _SHARED_LABELS),
    ("tmix", "freelb"): Pairing("rule", _SHARED_LABELS),
    ("freelb", "r3f"): Pairing("rule", _NO_CLEAN),
    ("freelb", "smart"): Pairing("rule", _NO_CLEAN),
    ("tmix", "r3f"): Pairing("rule", _OWN_PASS),
    ("tmix", "smart"): Pairing("rule", _OWN_PASS),
    ("r3f", "rdrop"): Pairing("redundant", "R3F with its own dropout draw is R-Drop with one label pass"),
    ("r3f", "smart"): Pairing("redundant", "SMART without its ascent is R3F"),
}


def pairing(one: str, other: str) -> Pairing:
    """What is known about two methods; "allowed" where nothing is.

    Args:
        one: key of a method.
        other: key of another.
    """
    return _PAIRINGS.get((one, other)) or _PAIRINGS.get((other, one)) or Pairing("allowed")


def known_pairings() -> dict[tuple[str, str], Pairing]:
    """All pairs about which more is known than that they do not touch each other."""
    return dict(_PAIRINGS)


def check_together(keys: Sequence[str]) -> list[str]:
    """Refuse a stack with a forbidden pair; say which pairs do the same twice.

    Args:
        keys: of the methods of a stack.
    Raises:
        MethodError: with the pair and the reason.
    """
    said = []
    for one, other in itertools.combinations(keys, 2):
        known = pairing(one, other)
        if known.verdict == "forbidden":
            raise MethodError(f"{one} and {other} do not go together: {known.why}.")
        if known.verdict == "redundant":
            said.append(f"{one} and {other} do the same twice: {known.why}.")
    return said
