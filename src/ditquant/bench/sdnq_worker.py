"""Run by another interpreter: quantize a saved model with SDNQ, then time a call for every line that comes in.

Needs torch, diffusers and sdnq; nothing of this package. First says the bytes of its state and of a call's peak.
"""

import json
import os
import sys
import time
from pathlib import Path

folder, weights, threads, device = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
answers = os.fdopen(os.dup(1), "w")  # what the packages print must not come between
os.dup2(2, 1)

from sdnq import sdnq_post_load_quant  # noqa: E402, I001  what is missing is told before torch takes its seconds
import torch  # noqa: E402


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def answer(*words: object) -> None:
    print(*words, file=answers, flush=True)


@torch.no_grad()
def main() -> None:
    import diffusers

    torch.set_num_threads(threads)
    found = json.loads((folder / "config.json").read_text())
    model = getattr(diffusers, found["_class_name"]).from_pretrained(folder, torch_dtype=torch.bfloat16).to(device)
    model = sdnq_post_load_quant(model.eval(), weights_dtype=weights, use_quantized_matmul=True)
    arguments = torch.load(folder / "arguments.pt")
    torch.save(model.state_dict(), folder / "state.pt")
    torch.save(model(**arguments, return_dict=False)[0], folder / f"{weights}.pt")
    grown, clear = -1, Path("/proc/self/clear_refs")
    if device == "cpu" and clear.exists():
        clear.write_text("5")
        before = peak()
        model(**arguments, return_dict=False)
        grown = peak() - before
    answer((folder / "state.pt").stat().st_size, grown)
    for _ in sys.stdin:
        start = time.perf_counter()
        model(**arguments, return_dict=False)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        answer(time.perf_counter() - start)


main()
