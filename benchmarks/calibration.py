"""Measure calibration block by block on PixArt-XL/2 (0.6 billion random weights, 256 tokens): time and memory.

    python benchmarks/calibration.py               # some minutes; writes benchmarks/results/calibration.json
    python benchmarks/calibration.py --max-memory 1.1GiB     # the same model in files, its blocks read one at a time

4 prompts (random embeddings of 120 tokens), 4 steps of DPM-Solver++, both guidance branches in one call: 16 calls of
512 tokens, all of them recorded. Bars on two cores: 6 minutes, and 4 GiB above the model. With --max-memory the weights
are saved in float32 and quantized by the command, in a process of its own whose peak is read: data-free, or with
--prompts as the transformer of `pixart-shapes`, calibrated with so many of its training captions and 4 steps.
"""

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from torch import nn

import ditquant
from ditquant import sources
from ditquant.evaluation import shapes

PROMPTS, STEPS, TEXT_TOKENS, GUIDANCE = 4, 4, 120, 4.5
GIB = 1 << 30


def build(layers: int, **changes: Any) -> PixArtTransformer2DModel:
    """Make PixArt-XL/2 for 256 pixels with random weights; `changes` fit it to a pipeline."""
    torch.manual_seed(0)
    config = {"out_channels": 8, "caption_channels": 4096, "sample_size": 32} | changes
    return PixArtTransformer2DModel(
        num_layers=layers,
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        cross_attention_dim=1152,
        patch_size=2,
        use_additional_conditions=False,
        **config,
    ).eval()


def sample(model: nn.Module) -> None:
    """Denoise the latents of every prompt."""
    for prompt in range(PROMPTS):
        generator = torch.Generator().manual_seed(prompt)
        scheduler = DPMSolverMultistepScheduler(beta_end=0.02, beta_schedule="linear")
        scheduler.set_timesteps(STEPS)
        text = torch.randn(2, TEXT_TOKENS, 4096, generator=generator)
        latents = torch.randn(1, 4, 32, 32, generator=generator)
        for step in scheduler.timesteps:
            noise = model(
                latents.expand(2, -1, -1, -1),
                encoder_hidden_states=text,
                encoder_attention_mask=torch.ones(2, TEXT_TOKENS),
                timestep=step.expand(2),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
            )[0][:, :4]
            without, given = noise.chunk(2)
            guided = without + GUIDANCE * (given - without)
            latents = scheduler.step(guided, step, latents, return_dict=False)[0]


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


COMMAND = """
import sys
from pathlib import Path
from ditquant.cli import main
try:
    main()
finally:
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def within(limit: str, recipe: str, layers: int, prompts: int) -> dict[str, Any]:
    """Quantize the model in files with the command, and return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        full, words = Path(folder, "full"), ["--recipe", recipe, "-o", f"{folder}/made", "--max-memory", limit]
        if prompts:
            shutil.copytree(sources.find("pixart-shapes").local(), full)
            shutil.rmtree(full / "transformer")
            Path(folder, "prompts.txt").write_text("\n".join(shapes.prompts(prompts, seed=100, held_out=False)))
            words += ["--prompts", f"{folder}/prompts.txt", "--steps", str(STEPS)]
        place = full / "transformer" if prompts else full
        model = build(layers, **({"out_channels": 4, "caption_channels": 256} if prompts else {}))
        weights = sum(p.numel() for p in model.parameters())
        model.save_pretrained(place, max_shard_size="500MB")
        stored = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        del model
        words = ["quantize", str(full), *words]
        wall = time.perf_counter()
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", COMMAND, *words], capture_output=True, text=True)
        wall = time.perf_counter() - wall
    if run.returncode:
        raise SystemExit(run.stderr)
    peak = int(run.stdout.split("VmHWM:")[1].split()[0]) * 1024
    print(run.stderr.splitlines()[0])
    return {
        "recipe": recipe,
        "blocks": layers,
        "weights": weights,
        "limit": limit,
        "prompts": prompts,
        "files_gib": round(stored / GIB, 2),
        "peak_gib": round(peak / GIB, 2),
        "wall_s": round(wall, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="lrq-w4a8")
    parser.add_argument("--layers", type=int, default=28, help="fewer blocks for a quick look")
    parser.add_argument("--max-memory", help="a limit for the command, such as 1.1GiB")
    parser.add_argument("--prompts", type=int, default=0, help="with --max-memory: captions to calibrate with")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    name = "calibration_max_memory.json" if options.max_memory else "calibration.json"
    output = options.output or Path(__file__).parent / "results" / name
    output.parent.mkdir(parents=True, exist_ok=True)
    if options.max_memory:
        found = within(options.max_memory, options.recipe, options.layers, options.prompts)
        print(found)
        known = json.loads(output.read_text()) if output.exists() else {}
        known["calibrated" if options.prompts else "data-free"] = found | {"threads": torch.get_num_threads()}
        output.write_text(json.dumps(known, indent=1) + "\n")
        return
    model = build(options.layers)
    weights = sum(p.numel() for p in model.parameters())
    before = resident_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    plan = ditquant.quantize(model, options.recipe, forward=sample)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "recipe": options.recipe,
        "blocks": options.layers,
        "weights": weights,
        "layers": len(plan.layers),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "model_gib": round(before / GIB, 2),
        "above_model_gib": round((peak - before) / GIB, 2),
        "plan": plan.hash(),
    }
    print(
        f"{weights / 1e9:.2f} billion weights, {len(plan.layers)} layers, {options.recipe}: {wall:.0f} s "
        f"({cpu:.0f} s of processor time, {torch.get_num_threads()} threads; bar 360 s on two cores), "
        f"{result['above_model_gib']:.2f} GiB above the model's {result['model_gib']:.2f} (bar 4)"
    )
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {output}")


if __name__ == "__main__":
    main()
