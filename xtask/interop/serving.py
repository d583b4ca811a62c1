"""Weights in 4 bits against the packages whose formats they are written in."""

import argparse
import json
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from safetensors.torch import load_file, save_file

import models
from checks import check, finish, run

parser = argparse.ArgumentParser()
parser.add_argument("--nvfp4", required=True, help="the command")
parser.add_argument("--tool", required=True, help="the example `interop`")
parser.add_argument("--work", required=True, type=Path)
arguments = parser.parse_args()
work = arguments.work / "serving"
work.mkdir(parents=True, exist_ok=True)


def nvfp4(*words):
    run(arguments.nvfp4, *words)


def tensors(folder):
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found.update(load_file(file))
    return found


def bits(tensor):
    """Bytes, with -0 taken for 0."""
    return (tensor + 0.0).contiguous().view(torch.uint8)


def awkward(folder, dtype):
    """Weights of many magnitudes: zeros, blocks far below the amax, amaxes that round differently."""
    torch.manual_seed(7)
    weights = {}
    for index, amax in enumerate((8.75, 4.34, 0.02, 1.0, 3e-5, 448.0)):
        weight = torch.randn(96, 256) * torch.logspace(-7, 0, 96)[:, None]
        weight[3], weight[5, :16] = 0.0, -0.0
        weight = weight / weight.abs().max() * amax
        weights[f"layers.{index}.up.weight"] = weight.to(dtype)
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")


config = models.config("M-*M-")
models.save(work / "hybrid", config, torch.bfloat16)
awkward(work / "awkward-bf16", torch.bfloat16)
awkward(work / "awkward-f32", torch.float32)
inputs = ["hybrid", "awkward-bf16", "awkward-f32"]

for name in inputs:
    for rule in ("transformer-engine", "four-over-six", "modelopt"):
        out, back = work / f"{name}-ct-{rule}", work / f"{name}-ct-{rule}-values"
        nvfp4("quantize", work / name, out, "--format", "compressed-tensors", "--rule", rule, "--force")
        nvfp4("dequantize", out, back, "--dtype", "bf16", "--force")
        served, values = tensors(out), tensors(back)
        settings = json.loads((out / "config.json").read_text())["quantization_config"]
        settings = QuantizationConfig.model_validate(settings)
        scheme = next(iter(settings.config_groups.values()))
        compressor = BaseCompressor.get_value_from_registry(settings.format)
        count = differing = 0
        for key in served:
            if key.endswith(".weight_packed"):
                linear = key.removesuffix(".weight_packed")
                parts = {
                    part: served[f"{linear}.{part}"]
                    for part in ("weight_packed", "weight_scale", "weight_global_scale")
                }
                theirs = compressor.decompress(parts, scheme)["weight"]
                differing += (bits(theirs) != bits(values[f"{linear}.weight"])).sum().item()
                count += theirs.numel()
        holds = count > 0 and differing == 0
        check(f"compressed-tensors decompresses {name}, {rule}", holds, f"{differing} of {count} differ")

for name in inputs:
    original = tensors(work / name)
    out, back = work / f"{name}-mo", work / f"{name}-mo-values"
    nvfp4("quantize", work / name, out, "--format", "modelopt", "--rule", "modelopt", "--force")
    nvfp4("dequantize", out, back, "--dtype", "f32", "--force")
    served, values = tensors(out), tensors(back)
    nvfp4("quantize", work / name, work / f"{name}-te", "--force")
    ours = tensors(work / f"{name}-te")
    codes = scales = decoded = count = blocks = other = 0
    for key in served:
        if key.endswith(".weight_scale_2"):
            linear = key.removesuffix(".weight_scale_2")
            weight = original[f"{linear}.weight"]
            double = served[key]
            theirs, scale, _ = NVFP4QTensor.quantize(weight.clone(), 16, None, double)
            codes += (theirs._quantized_data != served[f"{linear}.weight"]).sum().item()
            mine = served[f"{linear}.weight_scale"]
            scales += (scale.view(torch.uint8) != mine.view(torch.uint8)).sum().item()
            value = theirs.dequantize(
                dtype=torch.float32, scale=mine, double_scale=double, block_sizes={-1: 16}
            )
            decoded += (bits(value) != bits(values[f"{linear}.weight"])).sum().item()
            other += (scale.view(torch.uint8) != ours[f"{linear}.weight_scale"].view(torch.uint8)).sum().item()
            count, blocks = count + weight.numel(), blocks + scale.numel()
    holds = count > 0 and codes == scales == decoded == 0
    detail = f"{codes} code bytes, {scales} scales, {decoded} values of {count} differ"
    check(f"Model Optimizer quantizes {name}", holds, detail)
    print(f"    TransformerEngine's order of operations: {other} of {blocks} scales are others")

from transformers import AutoModelForCausalLM

ids = torch.randint(0, 256, (2, 37), generator=torch.Generator().manual_seed(1))
save_file({"ids": ids}, work / "ids.safetensors")
folder = work / "hybrid-ct-transformer-engine"
run(arguments.tool, "logits", f"{folder}-values", work / "ids.safetensors", work / "logits.safetensors")
expected = load_file(work / "logits.safetensors")["logits"]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
# The first forward decompresses to bf16, as our values above are; transformers refuses to cast a
# quantized model, but what it multiplies then are floats. In f32, here as there.
models.logits(model, ids)
got = models.logits(torch.nn.Module.float(model), ids)
worst = (got - expected).abs().max().item()
check("transformers loads compressed-tensors", worst <= 2e-5, f"logits differ by at most {worst:.2e}")
finish()
