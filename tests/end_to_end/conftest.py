"""A tiny data set, a tiny random encoder with a tokenizer, one trained run of them, and the command line in-process."""

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import BertTokenizer

from steadytune.cli import main
from tiny import VOCABULARY, tiny_model

SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]  # the padding token where tiny models have it
PRAISE = ["good", "fine", "great", "lovely", "superb"]
BLAME = ["bad", "awful", "poor", "dull", "sad"]
THINGS = ["day", "meal", "film", "book", "song", "trip"]


@dataclass(frozen=True)
class Outcome:
    """What one command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Run = Callable[[str], Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `steadytune` with these words, in this process."""

    def command(words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["steadytune", *shlex.split(words)])
        capsys.readouterr()
        code = main()
        shown = capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    return command


def write_reviews(path: Path) -> None:
    rows = [(f"{word} {thing}", "pos" if word in PRAISE else "neg") for word in PRAISE + BLAME for thing in THINGS]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))


def write_encoder(folder: Path) -> None:
    words = [*SPECIAL, *PRAISE, *BLAME, *THINGS]
    words += [f"word{index}" for index in range(VOCABULARY - len(words))]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    tiny_model("bert", num_labels=2).save_pretrained(folder)  # type: ignore[operator]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `reviews.csv`, the encoder `encoder`, and `trained`, a finished run on both."""
    folder = tmp_path_factory.mktemp("workshop")
    write_reviews(folder / "reviews.csv")
    write_encoder(folder / "encoder")
    patch = pytest.MonkeyPatch()
    with patch.context() as here:
        here.chdir(folder)
        words = "train reviews.csv -m encoder --max-length 32 --learning-rate 0.003 --json -o trained"
        here.setattr(sys, "argv", ["steadytune", *words.split(), "--set", "run.min_steps=60", "--epochs", "1"])
        assert main() == 0
    return folder


@pytest.fixture
def workplace(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workshop, as the working directory."""
    place = tmp_path / "workplace"
    shutil.copytree(workshop, place)
    monkeypatch.chdir(place)
    return place
