from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AlbertForSequenceClassification, AutoModel, GPT2Config, GPT2ForSequenceClassification
from transformers import AutoModelForSequenceClassification as Classifier

from steadytune.encoders import FAMILIES as KNOWN
from steadytune.encoders import SITES, SiteUnavailable, UnknownFamily, checkpointing, describe
from steadytune.encoders.families import DropoutUnavailable, dropout_settings, longest_input
from tiny import FAMILIES, PAD, WIDTH, inputs_of, tiny_batch, tiny_model
from tinyanswers import TASKS, AnswerTask, answer_model, choice_batch, place_batch

BY_KEYWORD = {"bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "modernbert"}
WITH_BIAS = BY_KEYWORD | {"deberta-v2", "deberta-v2-conv"}


def test_every_known_family_has_a_tiny_model() -> None:
    assert {tiny_model(family, depth=1).config.model_type for family in FAMILIES} == set(KNOWN)


def test_unknown_family_is_refused_by_name() -> None:
    model = GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9, num_labels=2))
    with pytest.raises(UnknownFamily, match="'gpt2' is not supported; supported are bert, "):
        describe(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_is_the_number_of_layer_calls(family: str) -> None:
    assert describe(tiny_model(family, depth=4)).depth == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_label_linear_is_the_one_that_gives_the_logits(family: str) -> None:
    model = tiny_model(family, num_labels=WIDTH).eval()  # as wide as everything else
    found = describe(model).label_linear
    assert found is not None
    with torch.no_grad():
        before = model(**inputs_of(tiny_batch(family))).logits
        found.bias += 1
        after = model(**inputs_of(tiny_batch(family))).logits
    torch.testing.assert_close(after, before + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_reported_for_every_kind_that_the_model_has(family: str) -> None:
    assert describe(tiny_model(family, dropout=0.25)).dropout == {"hidden": 0.25, "attention": 0.25, "head": 0.25}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_dropout_is_reported_where_there_is_none(family: str) -> None:
    assert describe(tiny_model(family, dropout=0.0)).dropout == {"hidden": 0.0, "attention": 0.0, "head": 0.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_dropout_settings_leave_no_randomness_in_a_model_loaded_with_them(family: str, tmp_path: Path) -> None:
    stochastic = tiny_model(family, dropout=0.3)
    stochastic.save_pretrained(tmp_path)
    attention = None if family == "xlnet" else 0.0  # one rate for all
    settings = dropout_settings(stochastic.config, hidden=0.0, attention=attention)
    model = type(stochastic).from_pretrained(tmp_path, **settings).train()
    batch = inputs_of(tiny_batch(family))
    assert torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_zero_dropout_settings_leave_no_randomness_in_heads_for_answers(
    family: str, task: AnswerTask, tmp_path: Path
) -> None:
    stochastic: Any = answer_model(family, task, dropout=0.3, dtype=torch.float32)
    stochastic.save_pretrained(tmp_path)
    attention = None if family == "xlnet" else 0.0
    settings = dropout_settings(stochastic.config, hidden=0.0, attention=attention)
    model = type(stochastic).from_pretrained(tmp_path, **settings).train()
    batch = inputs_of(choice_batch(family) if task == "multiple_choice" else place_batch(family))
    one, other = (model(**batch)["logits" if task == "multiple_choice" else "start_logits"] for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("family", "task", "name"),
    [("distilbert", "question_answering", "qa_dropout"), ("electra", "multiple_choice", "summary_last_dropout")],
)
def test_a_head_with_a_dropout_of_its_own_reports_that(family: str, task: AnswerTask, name: str) -> None:
    model: Any = answer_model(family, task, dropout=0.25)
    setattr(model.config, name, 0.5)
    assert describe(model).dropout == {"hidden": 0.25, "attention": 0.25, "head": 0.5}


@pytest.mark.parametrize("family", FAMILIES)
def test_label_linear_of_choices_has_one_output(family: str) -> None:
    linear = describe(answer_model(family, "multiple_choice")).label_linear
    assert linear is not None and linear.out_features == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_reads_every_token_offers_no_vector_per_text(family: str) -> None:
    with pytest.raises(SiteUnavailable) as caught:
        describe(answer_model(family, "question_answering")).require("pooled", "cat")
    assert str(caught.value).endswith("lacks: its head reads every token, not one vector per text.")


def test_a_dropout_that_a_family_has_not_is_refused() -> None:
    with pytest.raises(
        DropoutUnavailable, match=r"^xlnet has no dropout\.attention of its own; set dropout\.hidden\.$"
    ):
        dropout_settings(tiny_model("xlnet").config, attention=0.0)


@pytest.mark.parametrize(("family", "spare"), [("bert", 0), ("roberta", 2), ("mpnet", 2)])
def test_the_longest_input_is_what_the_positions_reach(family: str, spare: int) -> None:
    config = tiny_model(family).config
    assert longest_input(config) == config.max_position_embeddings - spare


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_offered_exactly_where_a_bias_reaches_the_scores(family: str) -> None:
    parts = describe(tiny_model(family))
    if family in WITH_BIAS:
        parts.require("attention", "asa")
    else:
        with pytest.raises(SiteUnavailable) as caught:
            parts.require("attention", "asa")
        assert str(caught.value) == (
            f"asa needs the site 'attention', which {family} lacks: its attention takes no additional bias."
        )


@pytest.mark.parametrize("family", sorted(BY_KEYWORD))
def test_eager_attention_is_refused_because_it_ignores_a_bias(family: str) -> None:
    parts = describe(tiny_model(family, attention="eager"))
    with pytest.raises(SiteUnavailable) as caught:
        parts.require("attention", "asa")
    assert str(caught.value) == (
        f"asa needs the site 'attention', which {family} lacks: attention implementation 'eager' ignores a bias; "
        "load with attn_implementation='sdpa'."
    )


def obstacle(model: nn.Module) -> str:
    return describe(model).attention_obstacle()


def test_the_obstacle_is_looked_up_anew() -> None:
    model: Any = tiny_model("bert")
    parts = describe(model)
    assert parts.attention_obstacle() == ""
    model.set_attn_implementation("eager")
    assert parts.attention_obstacle() == (
        "attention implementation 'eager' ignores a bias; load with attn_implementation='sdpa'"
    )


def test_albert_with_several_attention_blocks_in_one_call_offers_no_attention() -> None:
    config: Any = tiny_model("albert").config
    config.inner_group_num = 2
    assert obstacle(AlbertForSequenceClassification(config)) == (
        "one call runs several attention blocks (inner_group_num > 1)"
    )


def test_deberta_without_relative_attention_offers_no_attention() -> None:
    config: Any = tiny_model("deberta-v2").config
    config.relative_attention = False
    assert obstacle(Classifier.from_config(config)) == "without relative attention nothing is added to its scores"


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # also under its old name
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_disable`:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_deberta_offers_no_attention_while_its_layers_are_checkpointed(reentrant: bool) -> None:
    model: Any = tiny_model("deberta-v2")
    parts = describe(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert parts.attention_obstacle() == (
        "gradient checkpointing would compute its layers again without the bias; switch it off"
    )
    model.gradient_checkpointing_disable()
    assert parts.attention_obstacle() == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_inside_is_offered_exactly_where_keywords_travel(family: str) -> None:
    assert bool(describe(tiny_model(family)).inside_seam) == (family not in BY_KEYWORD)


# -- how layers are computed again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_model_does_not_checkpoint(family: str) -> None:
    assert checkpointing(tiny_model(family)) == ""


CHECKPOINTED = [family for family in FAMILIES if family not in ("albert", "mpnet", "xlnet")]  # the rest has none


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize(("reentrant", "kind"), [(False, "non-reentrant"), (True, "reentrant")])
@pytest.mark.parametrize("family", CHECKPOINTED)
def test_the_kind_of_checkpointing_is_told(family: str, reentrant: bool, kind: str) -> None:
    model: Any = tiny_model(family)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert checkpointing(model) == kind


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_disable`:FutureWarning")
def test_checkpointing_that_was_switched_off_is_over() -> None:
    model: Any = tiny_model("bert")
    model.gradient_checkpointing_enable()
    model.gradient_checkpointing_disable()
    assert checkpointing(model) == ""


# -- sizes and norms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_width_is_that_of_the_states_and_padding_is_the_tokens_id(family: str) -> None:
    parts = describe(tiny_model(family))
    assert (parts.width, parts.padding_id) == (WIDTH, PAD)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_modernbert_has_a_norm_after_its_last_layer(family: str) -> None:
    model: Any = tiny_model(family)
    assert describe(model).final_norm is (model.model.final_norm if family == "modernbert" else None)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "modernbert"])
def test_attention_reads_what_enters_the_layer(family: str) -> None:
    parts, states = describe(tiny_model(family)), torch.randn(2, 3, WIDTH)
    assert parts.attention_input(parts.layers[0], states) is states


@pytest.mark.parametrize("layer", [0, 1])
def test_the_attention_of_modernbert_reads_normed_states_above_the_first_layer(layer: int) -> None:
    parts, states = describe(tiny_model("modernbert", depth=2)), torch.randn(2, 3, WIDTH)
    norm: Any = parts.layers[layer].attn_norm
    assert isinstance(norm, nn.Identity) == (layer == 0)
    assert torch.equal(parts.attention_input(parts.layers[layer], states), norm(states))


def test_a_model_without_a_head_has_no_pooled_site() -> None:
    parts = describe(AutoModel.from_config(tiny_model("bert", num_labels=5).config))
    with pytest.raises(SiteUnavailable, match="scl needs the site 'pooled', which bert lacks"):
        parts.require("pooled", "scl")


def test_an_unknown_site_is_refused_with_the_list_of_sites() -> None:
    with pytest.raises(SiteUnavailable, match=f"sites are {', '.join(SITES)}"):
        describe(tiny_model("bert")).require("nowhere", "scl")


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_convolution_of_deberta_raises_the_first_layer_to_resume_at(family: str) -> None:
    assert describe(tiny_model(family)).first_resume == (1 if family == "deberta-v2-conv" else 0)
