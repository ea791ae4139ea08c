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


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al., 2024), with steps as large as AdamW's; torch's rounds to bfloat16.

    That is slower than float32 on a CPU that does not multiply bfloat16.
    """

    def __init__(self, matrices: list[torch.Tensor], momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(matrices, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = {}
            for p in group["params"]:
                alike.setdefault(p.shape, []).append(p)
            for shape, matrices in alike.items():
                gradients = [p.grad for p in matrices]
                momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in matrices]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
                steps = orthogonal(torch.stack(ahead)).unbind()
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(steps), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of matrices [B, N, K] near one, by five quintic Newton-Schulz steps."""
    x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT
