"""What the training scripts share: checkpoints, learning rate, mixed precision, a line of progress."""

import math
import time
from pathlib import Path

import torch


class Checkpoint:
    """Modules, optimizer and step of a stage, written aside and then renamed."""

    def __init__(self, path: Path, **parts):
        self.path, self.parts = path, parts

    def load(self) -> int:
        """Return the step to go on at."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        return state["step"]

    def save(self, step: int) -> None:
        """Keep what `step` steps have made."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save({**state, "step": step, "rng": torch.get_rng_state()}, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").rename(self.path)


def autocast(device: str) -> torch.autocast:
    """bfloat16 where the device multiplies in it; elsewhere it is many times slower than float32."""
    fast = device != "cpu" or torch.cpu.get_capabilities()["avx512_bf16"]
    return torch.autocast(device, torch.bfloat16, enabled=bool(fast))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the rate of a step: 200 steps of warm-up, then a cosine down to 2 % of the peak."""
    return peak * min(step / 200, 1) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def rate_at(step: int, steps: int, peak: float) -> float:
    """Return the rate of a step: up in 50 steps, and from the middle on down to 2 % of the peak in a line."""
    return peak * min((step + 1) / 50, 1, 0.02 + 0.98 * 2 * (steps - step) / steps)


def descend(optimizer: torch.optim.Optimizer, rate: float) -> None:
    (group,) = optimizer.param_groups
    torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def progress(stage: str, step: int, steps: int, start: tuple[int, float], **figures: float) -> None:
    """Print the step, the figures and the time left; `start` is the first step of this run and its time."""
    left = (time.time() - start[1]) / max(step - start[0], 1) * (steps - step)
    shown = " ".join(f"{k} {v:.4f}" for k, v in figures.items())
    print(f"{stage} {step}/{steps} {shown} {left / 60:.1f} min left", flush=True)
