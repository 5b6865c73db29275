"""Protocols: training rows damaged on purpose, and a model that goes on from another task with few labels."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from steadytune.data import Selection, corrupt, load_dataset
from steadytune.recipes import DataSettings, RunConfig, load_recipe, load_run
from steadytune.training.prepare import dataset_of, selection_of
from tolerances import SAME

Run = Callable[[str], Any]
SHORT = "--max-length 32 --epochs 1 --set run.min_steps=3 --json"
STILL = SHORT + " --learning-rate 1e-12 --set run.weight_decay=0"  # so that weights stay where they began


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


# Damaged training rows ------------------------------------------------------------------------------------------------


def drawn(seed: int = 0, **settings: Any) -> Selection:
    data = DataSettings(source="reviews.csv", k_shot=12, **settings)
    run = RunConfig(data=data, recipe=load_recipe("plain"), seed=seed)
    return selection_of(run, dataset_of(run))


NOISE = {"label_noise": 0.25, "label_noise_kind": "pair", "text_noise": 0.4}


@pytest.mark.parametrize("seed", range(3))
def test_noise_changes_nothing_in_which_rows_are_drawn(seed: int, workplace: Path) -> None:
    clean, noised = drawn(seed), drawn(seed, **NOISE)
    assert noised.train.ids == clean.train.ids
    assert sum(a != b for a, b in zip(noised.train.labels or (), clean.train.labels or (), strict=True)) == 6
    assert noised.train.texts != clean.train.texts
    assert (noised.dev, noised.test) == (clean.dev, clean.test)


def test_the_seed_of_the_run_decides_what_is_damaged(workplace: Path) -> None:
    dataset = load_dataset("reviews.csv")
    damage: dict[str, Any] = {**NOISE, "imbalance": 4.0}
    assert drawn(5, **damage) == corrupt(dataset, drawn(5), **damage, seed=5)


@pytest.mark.parametrize("seed", range(3))
def test_imbalance_keeps_some_of_the_rows_that_are_drawn(seed: int, workplace: Path) -> None:
    clean, thinned = drawn(seed), drawn(seed, imbalance=4)
    assert len(thinned.train) == 12 + 3
    assert thinned.train == clean.train.select([clean.train.ids.index(row_id) for row_id in thinned.train.ids])
    assert (thinned.dev, thinned.test) == (clean.dev, clean.test)


def test_a_damaged_run_says_what_was_done_and_hashes_the_rows_it_trained_on(workplace: Path, run: Run) -> None:
    settings = "--k-shot 12 --imbalance 4 --label-noise 0.2 --label-noise-kind pair --text-noise 0.4"
    assert run(f"train reviews.csv -m encoder -o damaged {settings} {SHORT}").code == 0
    assert run(f"train reviews.csv -m encoder -o clean --k-shot 12 {SHORT}").code == 0
    damaged, clean = (record_of(workplace / name) for name in ("damaged", "clean"))
    found = {name: damaged["config"]["data"][name] for name in (*NOISE, "imbalance")}
    assert found == {"label_noise": 0.2, "label_noise_kind": "pair", "text_noise": 0.4, "imbalance": 4.0}
    assert damaged["data_notes"][-3:-1] == [
        "imbalance 4: 15 of the 24 training rows drawn are kept, from 12 down to 3 per class",
        "label_noise 0.2 (pair): 3 of 15 training rows have the label of another class",
    ]
    assert damaged["data_notes"][-1].startswith("text_noise 0.4: ")
    assert damaged["data_rows"]["train"] == 15
    run_file = load_run(workplace / "damaged" / "run.yaml")
    trained = selection_of(run_file, dataset_of(run_file)).train
    content = json.dumps([trained.ids, trained.texts, None, trained.labels], separators=(",", ":"))
    assert damaged["data_fingerprints"]["train"] == hashlib.sha256(content.encode()).hexdigest()
    assert damaged["data_fingerprints"]["train"] != clean["data_fingerprints"]["train"]
    assert [damaged["data_fingerprints"][name] == clean["data_fingerprints"][name] for name in ("dev", "test")] == [
        True,
        True,
    ]


def test_the_run_file_repeats_the_damage(workplace: Path, run: Run) -> None:
    assert run(f"train reviews.csv -m encoder -o one --label-noise 0.2 --text-noise 0.4 {SHORT}").code == 0
    assert run("train --config one/run.yaml -o other --json").code == 0
    one, other = (record_of(workplace / name) for name in ("one", "other"))
    assert (one["run_id"], one["data_fingerprints"]) == (other["run_id"], other["data_fingerprints"])


# From one task to another ---------------------------------------------------------------------------------------------


def write_topics(place: Path, names: dict[str, str]) -> None:
    """A task of other labels over the same words: which thing a text speaks of."""
    adjectives = ["good", "fine", "great", "lovely", "bad", "awful", "poor", "dull"]
    rows = [f"{word} {thing},{name}\n" for word in adjectives for thing, name in names.items()]
    (place / "topics.csv").write_text("text,label\n" + "".join(rows))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "model.safetensors")


THREE = {"meal": "food", "film": "screen", "book": "page"}
TWO = {"meal": "food", "film": "screen"}  # as many labels as `trained` has, and others


@pytest.mark.parametrize("names", [THREE, TWO], ids=["other number", "same number"])
@pytest.mark.parametrize("model", ["trained/model", "trained"])
def test_a_run_on_other_labels_begins_with_the_trained_encoder_and_a_new_head(
    names: dict[str, str], model: str, workplace: Path, run: Run
) -> None:
    write_topics(workplace, names)
    assert run(f"train topics.csv -m {model} --k-shot 3 -o next {STILL}").code == 0
    before, after = weights(workplace / "trained"), weights(workplace / "next")
    encoder = [name for name in before if not name.startswith("classifier.")]
    assert len(encoder) > 10
    assert all(torch.allclose(after[name], before[name], atol=SAME[torch.float32]) for name in encoder)
    assert after["classifier.weight"].shape == (len(names), before["classifier.weight"].shape[1])
    assert not any(
        torch.allclose(a, b, atol=SAME[torch.float32])
        for a in after["classifier.weight"]
        for b in before["classifier.weight"]
    )


def test_the_record_names_the_weights_that_a_run_went_on_from(workplace: Path, run: Run) -> None:
    write_topics(workplace, THREE)
    assert run(f"train topics.csv -m trained/model --k-shot 3 -o next {SHORT}").code == 0
    record = record_of(workplace / "next")
    file = (workplace / "trained" / "model" / "model.safetensors").read_bytes()
    assert record["model_revision"] == hashlib.sha256(hashlib.sha256(file).digest()).hexdigest()
    assert record["model_name"] == "trained"
    assert record["label_names"] == sorted(THREE.values())
    assert record["data_rows"]["train"] == 9
    config = json.loads((workplace / "next" / "model" / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(sorted(THREE.values()))}


def test_two_labels_per_class_of_a_related_task_suffice_after_training_on_the_first(workplace: Path, run: Run) -> None:
    text = (workplace / "reviews.csv").read_text().replace(",pos", ",recommend").replace(",neg", ",avoid")
    (workplace / "advice.csv").write_text(text)
    words = "--k-shot 2 --max-length 32 --learning-rate 0.003 --epochs 1 --set run.min_steps=30 --json"
    done = {name: run(f"train advice.csv -m {name} -o from-{name} {words}") for name in ("trained", "encoder")}
    accuracy = {name: json.loads(one.out)["scores"]["test"]["accuracy"] for name, one in done.items()}
    assert accuracy["trained"] > 0.9
    assert accuracy["encoder"] < 0.7  # chance is 0.5: most words of praise and blame are not among the four rows
    assert json.loads(run("predict from-trained -t 'superb film' --json").out)["label"] == "recommend"
