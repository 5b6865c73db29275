"""The shapes in the signatures are checked while the tests run, in worker processes too."""

import pytest
import torch
from jaxtyping import TypeCheckError

from steadytune.functional import supcon_loss


def test_a_vector_where_a_matrix_belongs_is_refused(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("jaxtyping_packages"):
        pytest.skip("shapes are checked where --jaxtyping-packages asks for it, as in the Makefile")
    with pytest.raises(TypeCheckError):
        supcon_loss(torch.zeros(3), torch.zeros(3, dtype=torch.long), temperature=0.3)
