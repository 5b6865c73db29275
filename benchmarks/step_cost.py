"""Cost of a training step with each method, as a ratio to plain fine-tuning at the same dropout.

    python benchmarks/step_cost.py --output benchmarks/results

The variants take turns in one process, each right after plain, so that a machine whose speed drifts slows both alike;
plain beside itself shows the noise. Peak memory is that of a fresh process per variant. On a machine that does other
work too, `--clock cpu --threads 1` counts the seconds that the process had the processor.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from steadytune import (
    ASA,
    CAT,
    L2SP,
    LLRD,
    LNSR,
    PGD,
    R3F,
    SAM,
    SCL,
    SMART,
    Averaging,
    ChildTuning,
    FreeLB,
    HyPe,
    LabelSmoothing,
    LoRA,
    Mixout,
    NEFTune,
    NoisyTune,
    RDrop,
    RecAdam,
    RegularizedModel,
    ReInit,
    TMix,
    TopK,
)
from steadytune.encoders.bundled import bundled_encoder
from steadytune.encoders.families import dropout_settings
from steadytune.methods import Method
from steadytune.training import surroundings

CLASSES = 6


@dataclass(frozen=True)
class Variant:
    """One thing to time: methods at a dropout, beside plain at the same dropout, and its derived floor.

    Without methods (None) it is the bare model in a hand-written loop, which all ratios refer to.
    """

    name: str
    methods: tuple[Method, ...] | None
    hidden_dropout: float
    floor: float


NOISE = HyPe(noise_std=1e-2)
FOUR = (SCL(), CAT(epsilon=1.0), LNSR(), NOISE)
VARIANTS = (
    Variant("plain", None, 0.1, 1.0),
    Variant("wrapper without method", (), 0.1, 1.0),
    Variant("scl", (SCL(),), 0.1, 1.0),
    Variant("hype", (NOISE,), 0.1, 1.0),
    Variant("scl+hype", (SCL(), NOISE), 0.1, 1.0),
    Variant("lnsr", (LNSR(),), 0.1, 2.0),
    Variant("lnsr from the middle", (LNSR(injection_layer=3),), 0.1, 1.5),
    Variant("cat", (CAT(epsilon=1.0),), 0.1, 7 / 3),
    Variant("consistency", (ASA(adversary="none"),), 0.1, 2.0),
    Variant("asa", (ASA(),), 0.1, 2.13),
    Variant("scl+cat+lnsr+hype", FOUR, 0.1, 10 / 3),
    Variant("scl+cat+lnsr+hype+asa", (*FOUR, ASA()), 0.1, 10 / 3 + 1.13),
    Variant("rdrop", (RDrop(),), 0.1, 2.0),
    Variant("r3f", (R3F(),), 0.1, 2.0),
    Variant("r4f", (R3F(spectral_norm=True),), 0.1, 2.0),
    Variant("fgm", (PGD(steps=1),), 0.1, 2.0),
    Variant("pgd, 3 steps", (PGD(steps=3),), 0.1, 10 / 3),
    Variant("freelb, 3 steps", (FreeLB(),), 0.1, 3.0),
    Variant("smart", (SMART(),), 0.1, 3.0),
    Variant("vat", (SMART(target="clean", norm="l2", bregman=0.0),), 0.1, 8 / 3),
    Variant("mixout", (Mixout(),), 0.1, 1.0),
    Variant("child_tuning F", (ChildTuning(mode="F"),), 0.1, 1.0),
    Variant("child_tuning D", (ChildTuning(mode="D", fisher_rows=4),), 0.1, 1.0),
    Variant("reinit", (ReInit(),), 0.1, 1.0),
    Variant("l2sp", (L2SP(),), 0.1, 1.0),
    Variant("l2sp penalty", (L2SP(form="penalty"),), 0.1, 1.0),
    Variant("llrd", (LLRD(),), 0.1, 1.0),
    Variant("averaging", (Averaging(),), 0.1, 1.0),
    Variant("label_smoothing", (LabelSmoothing(),), 0.1, 1.0),
    Variant("neftune", (NEFTune(),), 0.1, 1.0),
    Variant("noisytune", (NoisyTune(),), 0.1, 1.0),
    Variant("recadam", (RecAdam(),), 0.1, 1.0),
    Variant("sam", (SAM(),), 0.1, 2.0),
    Variant("tmix", (TMix(),), 0.1, 1.0),
    Variant("topk, 3 of 6 layers", (TopK(layers=3),), 0.1, 2 / 3),
    Variant("lora", (LoRA(),), 0.1, 2 / 3),
    Variant("plain, no hidden dropout", None, 0.0, 1.0),
    Variant("hype, no hidden dropout", (NOISE,), 0.0, 1.0),
)


def make(hidden_dropout: float) -> Any:
    """The bundled encoder with a new head."""
    folder = bundled_encoder()
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    settings = dropout_settings(config, hidden=hidden_dropout)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=CLASSES, **settings)
    return model.to("cuda") if torch.cuda.is_available() else model


def batch(rows: int, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Full-length rows, so that every variant computes the same shapes."""
    generator = torch.Generator().manual_seed(0)
    made = {
        "input_ids": torch.randint(1000, 30000, (rows, length), generator=generator),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "labels": torch.arange(rows) % CLASSES,
    }
    return {name: value.to(device) for name, value in made.items()}


Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(
    variant: Variant, model: Any, inputs: dict[str, torch.Tensor], steps: int, clock: Clock = time.perf_counter
) -> float:
    """Seconds of `steps` training steps after one that is not counted."""
    model = copy.deepcopy(model)  # some methods change it
    wrapped = None if variant.methods is None else RegularizedModel(model, variant.methods)
    trained = model if wrapped is None else wrapped
    trained.train()
    parameters = list(model.parameters())
    groups = parameters if wrapped is None else wrapped.parameter_groups(lr=1e-9)
    clip = partial(torch.nn.utils.clip_grad_norm_, parameters) if wrapped is None else wrapped.clip_grad_norm_
    optimizer = torch.optim.AdamW(groups, lr=1e-9, fused=True)
    if wrapped is not None:
        wrapped.attach(optimizer, total_updates=steps + 1)
        if wrapped.wants_survey:
            wrapped.survey([{name: value[:4] for name, value in inputs.items()}])
    start = 0.0
    for number in range(steps + 1):
        if number == 1:
            _wait()
            start = clock()
        trained(**inputs).loss.backward()
        clip(1.0)
        optimizer.step()
        optimizer.zero_grad()
    _wait()
    seconds = clock() - start
    if wrapped is not None:
        wrapped.close()
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(variant: Variant, rows: int, length: int, threads: int) -> int:
    """Peak memory in bytes of a fresh process that takes three steps."""
    command = [sys.executable, __file__, "--memory-of", variant.name, "--rows", str(rows), "--length", str(length)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def measure(
    variants: Sequence[Variant], *, rows: int, length: int, threads: int, rounds: int, steps: int, clock: str
) -> Iterator[dict[str, Any]]:
    """The variants in turn, `rounds` times; what is known after each round but the first."""
    models = {dropout: make(dropout) for dropout in {variant.hidden_dropout for variant in variants}}
    inputs = batch(rows, length, next(next(iter(models.values())).parameters()).device)
    bases = {variant.hidden_dropout: variant for variant in VARIANTS if variant.methods is None}
    ratios: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for turn in range(1, rounds + 1):
        for variant in variants:
            base, model = bases[variant.hidden_dropout], models[variant.hidden_dropout]
            plain, own = (timed(one, model, inputs, steps, CLOCKS[clock]) for one in (base, variant))
            ratios[variant.name].append(own / plain)
        if turn == 1:
            continue
        results = []
        for variant in variants:
            low, median, high = statistics.quantiles(ratios[variant.name], n=4, method="inclusive")
            results.append(
                {
                    "variant": variant.name,
                    "beside": bases[variant.hidden_dropout].name,
                    "floor": variant.floor,
                    "ratio": median,
                    "ratio_quartiles": [low, high],
                }
            )
        setting = {"rows": rows, "length": length, "threads": threads, "rounds": turn, "steps": steps, "clock": clock}
        yield {
            "setting": setting,
            "results": results,
            "on": surroundings.hardware(),
            "versions": surroundings.versions(),
        }


def as_table(measured: dict[str, Any]) -> str:
    """The results as Markdown."""
    setting, on = measured["setting"], measured["on"]
    lines = [
        "# Cost of a training step",
        "",
        f"Bundled encoder, batch {setting['rows']}, length {setting['length']}, float32, {setting['threads']} threads, "
        f"{on['processor']}, accelerator {on['accelerator']}, torch {measured['versions']['torch']}. Median and "
        f"quartiles of {setting['rounds']} rounds of {setting['steps']} steps each, right after as many plain ones, "
        f"{setting['clock']} time; peak memory of a fresh process that takes three steps.",
        "",
        "| variant | beside | derived floor | ratio | quartiles | peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in measured["results"]:
        low, high = row["ratio_quartiles"]
        memory = f"{row['peak_memory_bytes'] / 2**20:.0f}" if "peak_memory_bytes" in row else "–"
        lines.append(
            f"| {row['variant']} | {row['beside']} | {row['floor']:.2f} | {row['ratio']:.3f} | {low:.3f} to {high:.3f} "
            f"| {memory} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write `step_cost.json` and `step_cost.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="two or more")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure peak memory")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="measure these, beside plain")
    parser.add_argument("--memory-of", choices=[variant.name for variant in VARIANTS])
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        variant = next(v for v in VARIANTS if v.name == options.memory_of)
        model = make(variant.hidden_dropout)
        timed(variant, model, batch(options.rows, options.length, next(model.parameters()).device), 2)
        print(surroundings.peak_memory_bytes())
        return
    wanted = [v for v in VARIANTS if options.only is None or v.methods is None or v.name in options.only]
    options.output.mkdir(parents=True, exist_ok=True)
    turns = measure(
        wanted,
        rows=options.rows,
        length=options.length,
        threads=options.threads,
        rounds=options.rounds,
        steps=options.steps,
        clock=options.clock,
    )
    for measured in turns:  # a stopped measurement leaves the rounds that it finished
        write(measured, options.output)
    if not options.no_memory:
        for variant, row in zip(wanted, measured["results"], strict=True):
            row["peak_memory_bytes"] = peak_memory(variant, options.rows, options.length, options.threads)
            write(measured, options.output)
    print(as_table(measured))


def write(measured: dict[str, Any], folder: Path) -> None:
    """`step_cost.json` and `step_cost.md`."""
    (folder / "step_cost.json").write_text(json.dumps(measured, indent=1) + "\n")
    (folder / "step_cost.md").write_text(as_table(measured))


if __name__ == "__main__":
    main()
