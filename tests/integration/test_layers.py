"""What is measured inside a trained model: values by another road, every family, and that nothing is left behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from steadytune import RegularizedModel
from steadytune.data.batching import PaddingCollator
from steadytune.encoders import stability_curve
from steadytune.methods.asa import ASA
from steadytune.recipes.recipe import validated
from steadytune.records import RunRecord, StudyStore
from steadytune.studies import Plan
from steadytune.studies.execute import open_store
from steadytune.studies.executors import Agenda, run_here
from steadytune.tasks import Encoded
from steadytune.training.fit import fit
from steadytune.training.layers import measured_layers
from tiny import CLS, FAMILIES, HEADS, PAD, VOCABULARY, WIDTH, tiny_model
from tolerances import SAME
from toyrun import recipe_of, run_of, write_data, write_model

pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")
DEPTH = 3
CLOSE: dict[str, float] = {"rtol": SAME[torch.float32], "atol": SAME[torch.float32]}
NO_ATTENTION_SITE = ("mpnet", "xlnet")


def rows_of(lengths: list[int], *, labels: list[Any] | None = None, seed: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    ids = [[CLS, *torch.randint(5, VOCABULARY, (length - 1,), generator=generator).tolist()] for length in lengths]
    given = [place % 3 for place in range(len(lengths))] if labels is None else labels
    return Encoded(tuple(f"row-{place}" for place in range(len(lengths))), ids, None, tuple(given), 0)


def splits(**changes: Any) -> dict[str, Encoded]:
    train, test = rows_of([3 + place % 7 for place in range(30)]), rows_of([9, 5, 7, 30, 6, 8, 4, 6, 3], seed=1)
    return {"train": train, "test": test, **changes}


def collator(family: str = "bert", dtype: torch.dtype = torch.long) -> PaddingCollator:
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"] + [f"word{place}" for place in range(VOCABULARY - 5)]
    tokenizer = transformers.BertTokenizer(vocab={word: place for place, word in enumerate(words)})
    tokenizer.padding_side = "left" if family == "xlnet" else "right"
    assert tokenizer.pad_token_id == PAD
    return PaddingCollator(tokenizer, dtype)


def wrapped(model: nn.Module, *methods: Any, **options: Any) -> RegularizedModel:
    wrapper = RegularizedModel(model, methods, **options)
    wrapper.close()
    return wrapper


def measured(wrapper: RegularizedModel, rows: dict[str, Encoded] | None = None, family: str = "bert") -> dict[str, Any]:
    return measured_layers(wrapper, splits() if rows is None else rows, collator(family), batch_size=4)


def alone(rows: Encoded, place: int) -> Tensor:
    return torch.tensor([rows.input_ids[place]])


def states_of(model: Any, ids: Tensor) -> tuple[Tensor, ...]:
    """What enters each layer and what leaves the last one, as the model itself reports it, in evaluation mode."""
    with torch.no_grad():
        found: tuple[Tensor, ...] = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states
    return found


# -- stability and probing --------------------------------------------------------------------------------------------


def test_stability_is_the_curve_of_one_batch_of_test_rows() -> None:
    model, rows = tiny_model("bert"), splits()
    found = measured(wrapped(model), rows)["stability"]
    ids, mask = torch.full((9, 30), PAD), torch.zeros(9, 30, dtype=torch.long)
    for place, tokens in enumerate(rows["test"].input_ids):
        ids[place, : len(tokens)], mask[place, : len(tokens)] = torch.tensor(tokens), 1
    assert found == stability_curve(model, {"input_ids": ids, "attention_mask": mask}).tolist()


def test_stability_has_no_value_below_the_layer_where_noise_can_enter() -> None:
    found = measured(wrapped(tiny_model("deberta-v2-conv")), family="deberta-v2")["stability"]
    assert [value is None for value in found] == [True, False, False]


def test_a_model_that_noise_cannot_enter_has_no_stability(caplog: pytest.LogCaptureFixture) -> None:
    assert measured(wrapped(tiny_model("deberta-v2-conv", depth=1)), family="deberta-v2")["stability"] is None
    assert "stability is left out" in caplog.text


def test_probing_is_logistic_regression_on_the_mean_state_of_each_row() -> None:
    model, rows = tiny_model("bert"), splits(test=rows_of([3 + place % 9 for place in range(40)], seed=1))
    found = measured(wrapped(model), rows)["probing"]
    assert found["layers"] == [0, 1, 2, 3]
    for layer, accuracy in zip(found["layers"], found["accuracy"], strict=True):
        vectors = {
            name: np.stack([states_of(model, alone(part, i))[layer][0].mean(dim=0).numpy() for i in range(len(part))])
            for name, part in rows.items()
        }
        scaler = StandardScaler().fit(vectors["train"])
        probe = LogisticRegression(max_iter=200).fit(scaler.transform(vectors["train"]), rows["train"].labels)
        right = probe.predict(scaler.transform(vectors["test"])) == np.array(rows["test"].labels)
        assert accuracy == pytest.approx(right.mean())


def test_a_label_that_a_token_gives_away_is_read_from_the_embeddings() -> None:
    def told(seed: int) -> Encoded:
        rows = rows_of([6] * 30, seed=seed)
        return Encoded(rows.ids, [[CLS, *[5 + i % 3] * 5] for i in range(30)], None, rows.labels, 0)

    assert measured(wrapped(tiny_model("bert")), {"train": told(0), "test": told(1)})["probing"]["accuracy"][0] == 1.0


def test_rows_beyond_the_bound_are_taken_at_equal_distances() -> None:
    labels = [0] * 700 + [1] * 400  # sorted: the first 500 have one class
    train = rows_of([3] * 1100, labels=labels)
    found = measured(wrapped(tiny_model("bert", num_labels=2, depth=1)), splits(train=train))
    assert found["probing"] is not None


def test_probing_needs_two_classes(caplog: pytest.LogCaptureFixture) -> None:
    train = rows_of([4] * 6, labels=[2] * 6)
    assert measured(wrapped(tiny_model("bert")), splits(train=train))["probing"] is None
    assert "probing is left out" in caplog.text


def test_probing_needs_classes() -> None:
    model = tiny_model("bert", num_labels=1, problem_type="regression")
    scores = [0.5, 1.5, 2.5, 0.0]
    rows = {name: rows_of([4, 5, 6, 7], labels=scores) for name in ("train", "test")}
    found = measured_layers(wrapped(model), rows, collator(dtype=torch.float32))
    assert found["probing"] is None and len(found["stability"]) == DEPTH and len(found["attention"]) == 2


# -- attention --------------------------------------------------------------------------------------------------------


def test_attention_is_the_softmax_of_queries_and_keys_in_the_last_layer() -> None:
    model: Any = tiny_model("bert")
    rows = splits()
    for entry in measured(wrapped(model), rows)["attention"]:
        ids = alone(rows["test"], rows["test"].ids.index(entry["id"]))
        states, block = states_of(model, ids)[DEPTH - 1][0], model.bert.encoder.layer[DEPTH - 1].attention.self
        size, mean = WIDTH // HEADS, torch.zeros(ids.shape[1], ids.shape[1])
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            query, key = block.query(states)[:, part], block.key(states)[:, part]
            mean += (query @ key.T / size**0.5).softmax(dim=-1).detach() / HEADS
        torch.testing.assert_close(torch.tensor(entry["weights"]), mean, **CLOSE)
        assert entry["layer"] == DEPTH - 1 and entry["keep"] is None


def test_two_rows_of_middling_length_are_shown() -> None:
    found = measured(wrapped(tiny_model("bert")))["attention"]
    assert [entry["id"] for entry in found] == ["row-4", "row-7"]  # lengths 9 5 7 30 6 8 4 6 3: the median is 6


def test_whole_rows_are_shown_where_there_are_some() -> None:
    rows = splits(test=rows_of([40, 41, 9, 42, 24, 43], seed=1))
    found = measured(wrapped(tiny_model("bert")), rows)["attention"]
    assert [(entry["id"], len(entry["weights"])) for entry in found] == [("row-4", 24), ("row-2", 9)]


def test_a_long_row_is_cut_after_its_pass() -> None:
    rows, model = splits(test=rows_of([40], seed=1)), tiny_model("bert", attention="eager").eval()
    (entry,) = measured(wrapped(model), rows)["attention"]
    with torch.no_grad():
        whole = model(input_ids=alone(rows["test"], 0), output_attentions=True).attentions[-1][0].mean(dim=0)
    torch.testing.assert_close(torch.tensor(entry["weights"]), whole[:24, :24], **CLOSE)


def test_a_model_without_attention_weights_shows_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transformers.BertForSequenceClassification, "set_attn_implementation", lambda *_: None)
    assert measured(wrapped(tiny_model("bert", attention="sdpa")))["attention"] == []
    assert "attention is left out" in caplog.text


@pytest.mark.parametrize("protect", ["self", "cls_col", "none"])
def test_keep_is_what_the_adversary_of_the_layer_keeps(protect: str) -> None:
    model, rows = tiny_model("bert"), splits()
    method = ASA(layers=[DEPTH - 1], protect=protect, rank=4, keep_bias=-0.001)  # type: ignore[arg-type]
    wrapper = wrapped(model, method)
    adversary: Any = wrapper.method_modules["asa"]
    for entry in measured(wrapper, rows)["attention"]:
        ids = alone(rows["test"], rows["test"].ids.index(entry["id"]))
        states = states_of(model, ids)[DEPTH - 1][0]  # no layer below is attacked
        query, key = adversary.query[0](states), adversary.key[0](states)
        tokens = range(ids.shape[1])
        spared = {"self": lambda i, j: i == j, "cls_col": lambda i, j: j == 0, "none": lambda i, j: False}[protect]
        expected = [[float(spared(i, j) or query[i] @ key[j] / 4**0.5 - 0.001 > 0) for j in tokens] for i in tokens]
        expected = [row if any(row) else [1.0] * len(row) for row in expected]  # a query keeps something to read
        assert entry["keep"] == expected
        assert {value for row in expected for value in row} == {0.0, 1.0}


def test_a_layer_that_is_not_attacked_has_no_mask() -> None:
    assert {entry["keep"] for entry in measured(wrapped(tiny_model("bert"), ASA(layers=[0])))["attention"]} == {None}


def test_an_adversary_that_has_not_begun_has_no_mask() -> None:
    assert {entry["keep"] for entry in measured(wrapped(tiny_model("bert"), ASA(start_step=5)))["attention"]} == {None}


# -- every family, nothing left behind --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured(family: str) -> None:
    methods = [] if family in NO_ATTENTION_SITE else [ASA()]
    found = measured(wrapped(tiny_model(family), *methods), family=family)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["stability"]) == DEPTH and len(found["probing"]["accuracy"]) == DEPTH + 1
    for entry in found["attention"]:
        weights = torch.tensor(entry["weights"])
        assert weights.shape == (6, 6)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(6), **CLOSE)
        assert (entry["keep"] is None) == (not methods)
    assert len(found["attention"]) == 2


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_nothing_is_left_behind(family: str) -> None:
    model: Any = tiny_model(family)
    wrapper = wrapped(model, ASA(target_mask_fraction=0.3))
    next(model.modules()).train()
    model.dropout = getattr(model, "dropout", nn.Dropout()).eval()  # a module in a mode of its own
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in wrapper.state_dict().items()}
    stream, keys = torch.get_rng_state(), sorted(vars(model))
    implementation, installed, spent = model.config._attn_implementation, hooks(model), dict(vars(wrapper.spent))
    first = measured(wrapper, family=family)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(value, weights[name]) for name, value in wrapper.state_dict().items())
    assert (model.config._attn_implementation, hooks(model), sorted(vars(model))) == (implementation, installed, keys)
    assert (dict(vars(wrapper.spent)), wrapper.notices, wrapper.micro_steps) == (spent, [], 0)
    assert all(parameter.grad is None for parameter in wrapper.parameters())
    assert measured(wrapper, family=family) == first
    wrapper.reopen()  # refused if another wrapper were still there
    wrapper.close()


# -- where it ends up -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    write_data(folder / "data")
    write_model(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def looked_at(place: Path) -> tuple[Path, RunRecord]:
    """A run with ASA that was measured, and its record."""
    config = run_of(place / "data", place / "encoder", recipe_of("asa"), min_steps=4, epochs=0.1)
    return place / "run", fit(config, place / "run", layers=True, export=False)


def test_a_run_leaves_its_layers_where_it_is_asked_to(looked_at: tuple[Path, RunRecord]) -> None:
    folder, _ = looked_at
    found = json.loads((folder / "layers.json").read_text())
    assert sorted(found) == ["attention", "probing", "stability"]
    assert len(found["stability"]) == 2 and all(entry["keep"] for entry in found["attention"])


def test_tokens_lie_in_a_file_of_their_own(looked_at: tuple[Path, RunRecord], place: Path) -> None:
    folder, _ = looked_at
    shown = json.loads((folder / "layers.json").read_text())["attention"]
    tokens = json.loads((folder / "layers_tokens.json").read_text())
    assert list(tokens) == [entry["id"] for entry in shown] and not any("tokens" in entry for entry in shown)
    texts = pd.read_csv(place / "data" / "test.csv")["text"]
    for entry in shown:
        text = texts[int(entry["id"].removeprefix("test-"))]
        assert tokens[entry["id"]] == ["[CLS]", *text.split(), "[SEP]"]
        assert len(tokens[entry["id"]]) == len(entry["weights"])


def test_looking_changes_no_result(looked_at: tuple[Path, RunRecord], place: Path, tmp_path: Path) -> None:
    folder, record = looked_at
    config = run_of(place / "data", place / "encoder", recipe_of("asa"), min_steps=4, epochs=0.1)
    plain = fit(config, tmp_path / "run", export=False)
    assert (plain.scores, plain.run_id, plain.notices) == (record.scores, record.run_id, record.notices)
    one, other = (pd.read_parquet(path / "predictions.parquet") for path in (folder, tmp_path / "run"))
    pd.testing.assert_frame_equal(one, other)
    assert not (tmp_path / "run" / "layers.json").exists()


def test_a_run_that_leaves_the_test_rows_closed_is_not_looked_at(place: Path, tmp_path: Path) -> None:
    config = run_of(place / "data", place / "encoder", recipe_of("plain"), min_steps=2, epochs=0.1)
    fit(config, tmp_path / "run", layers=True, export=False, splits=("dev",))
    assert not (tmp_path / "run" / "layers.json").exists()


def study(place: Path, **changes: Any) -> Plan:
    wanted = {
        "model": str(place / "encoder"),
        "tasks": {"films": {"source": str(place / "data")}},
        "recipes": ["plain", "scl"],
        "seeds": [3, 1],
        "run": {"min_steps": 2, "epochs": 0.1, "batch_size": 8, "max_length": 16},
        **changes,
    }
    return validated(Plan, wanted, "plan")


def test_a_study_looks_at_the_first_seed_of_every_recipe(place: Path, tmp_path: Path) -> None:
    plan = study(place, layers=True)
    store = open_store(plan, tmp_path / "out")
    run_here(Agenda(plan, {}, {}), store)
    assert {record.status for record in store.records().values()} == {"done"}
    first = {cell.id for cell in plan.cells() if cell.config.seed == 3}
    assert {path.parent.name for path in (tmp_path / "out").glob("artifacts/*/layers.json")} == first
    assert {path.name for path in (tmp_path / "out" / "texts").iterdir()} == {f"{cell}-tokens.json" for cell in first}
    assert "texts/" in (tmp_path / "out" / ".gitignore").read_text().splitlines()
    assert [path.name for path in (tmp_path / "out").rglob("layers_tokens.json")] == []


def test_a_study_looks_at_no_model_unless_it_is_asked_to(place: Path, tmp_path: Path) -> None:
    plan = study(place, recipes=["plain"], seeds=1)
    store: StudyStore = open_store(plan, tmp_path / "out")
    run_here(Agenda(plan, {}, {}), store)
    assert len(store.records()) == 1 and not any((tmp_path / "out").glob("artifacts/*/layers.json"))


def test_asking_for_layers_changes_no_cell(place: Path) -> None:
    assert [cell.id for cell in study(place, layers=True).cells()] == [cell.id for cell in study(place).cells()]
