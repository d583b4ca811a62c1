"""Checkpoints both ways: what transformers writes we read, what we write transformers reads."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import models
from checks import check, finish, run

BOUND = 2e-5

parser = argparse.ArgumentParser()
parser.add_argument("--tool", required=True, help="the example `interop`")
parser.add_argument("--work", required=True, type=Path)
arguments = parser.parse_args()
work = arguments.work / "checkpoints"
work.mkdir(parents=True, exist_ok=True)

ids = torch.randint(0, 256, (2, 37), generator=torch.Generator().manual_seed(1))
save_file({"ids": ids}, work / "ids.safetensors")


def ours(folder):
    """Our logits of a checkpoint."""
    out = work / "logits.safetensors"
    run(arguments.tool, "logits", folder, work / "ids.safetensors", out)
    return load_file(out)["logits"]


def compare(name, a, b):
    worst = (a - b).abs().max().item()
    check(name, worst <= BOUND, f"logits differ by at most {worst:.2e} of {a.abs().max():.2f}")


cases = {
    "hybrid": (models.config(), torch.float32, {}),
    "biases": (models.config(use_bias=True, mlp_bias=True), torch.float32, {}),
    "shards": (models.config("M-*-"), torch.float32, {"max_shard_size": "100KB"}),
    "bf16": (models.config("MM*-"), torch.bfloat16, {"max_shard_size": "50KB"}),
}
for name, (config, dtype, options) in cases.items():
    theirs = work / f"{name}-theirs"
    models.save(theirs, config, dtype, **options)
    expected = models.logits(models.load(theirs), ids)
    compare(f"{name}: we read what transformers wrote", expected, ours(theirs))
    for stored, shard in (("f32", 0), ("bf16", 60_000)):
        again = work / f"{name}-{stored}"
        run(arguments.tool, "resave", theirs, again, stored, shard)
        got = models.logits(models.load(again), ids)
        # In bf16 the weights are other numbers, but the same ones for both.
        target = expected if stored == "f32" else ours(again)
        compare(f"{name}: transformers reads what we wrote in {stored}", target, got)

made = work / "ours"
run(arguments.tool, "init", "tiny-1m", made)
compare("tiny-1m: transformers reads a model of ours", ours(made), models.logits(models.load(made), ids))
finish()
