"""A masked-LM head that is given the masked places only says there what it says of them among all places."""

import pytest
import torch

from steadytune.encoders import PassRunner, Sites, states_at
from tiny import VOCABULARY, inputs_of
from tinylm import FAMILIES, masked_batch, tiny_masked_model
from tolerances import SAME


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_exist_at_masked_places_only_and_are_those_of_the_whole_model(family: str) -> None:
    model, batch = tiny_masked_model(family, dtype=torch.float64).eval(), masked_batch(family)
    masked = batch["labels"] != -100
    whole = model(**inputs_of(batch)).logits
    sites = Sites(model)
    narrow = PassRunner(model, sites, head_reads=masked).run(inputs_of(batch)).logits
    sites.close()
    assert narrow is not None and masked.sum() == 6
    assert (whole.shape, narrow.shape) == ((4, 9, VOCABULARY), (1, 6, VOCABULARY))
    torch.testing.assert_close(narrow[0], whole[masked], rtol=SAME[torch.float64], atol=SAME[torch.float64])


def test_the_states_that_are_recorded_stay_whole() -> None:
    model, batch = tiny_masked_model("bert"), masked_batch("bert")
    sites = Sites(model)
    record = PassRunner(model, sites, head_reads=batch["labels"] != -100).run(inputs_of(batch)).record
    sites.close()
    assert record.last is not None and record.last.shape[:2] == batch["input_ids"].shape


def test_a_tuple_is_narrowed_like_an_object() -> None:
    states, places = torch.randn(2, 3, 4), torch.tensor([[True, False, False], [False, True, True]])
    narrowed, rest = states_at((states, "rest"), places)
    assert rest == "rest" and torch.equal(narrowed, torch.stack([states[0, 0], states[1, 1], states[1, 2]])[None])
