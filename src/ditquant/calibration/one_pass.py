"""Quantize a model whose blocks cannot be run one by one: all layers see the full-precision model."""

from collections.abc import Callable, Iterator

from ditquant.calibration.collect import collect
from ditquant.calibration.forecast import told_of_calls
from ditquant.calibration.part import Part
from ditquant.calibration.work import WorkFolder
from ditquant.nn import QuantLinear
from ditquant.progress import bar as progress_bar

GRAM_LIMIT = 1 << 30  # bytes of Gram matrices of all prompts; those of one prompt are held besides


def quantize_one_pass(
    part: Part, run: Callable[[], object] | None, work: WorkFolder | None = None
) -> dict[str, QuantLinear]:
    """Return the quantized layers of a part; `run` runs the model, more than once where it has many Gram matrices."""
    made: dict[str, QuantLinear] = {}
    groups = list(_groups(part))
    for names in groups:
        left = [name for name in names if work is None or not work.whole(part.unit(name), part.linears([name]))]
        seen = {}
        if left and run is not None:
            watched = part.linears([name for name in names if name in part.data])
            if watched:
                runs = len(groups) - groups.index(names)
                with told_of_calls([part], run, lambda steps, runs=runs: steps * runs):
                    seen = collect(watched, run, seed=part.seed, grams=part.grams)
            if len(watched) == len(part.data) > len(seen) == 0:
                raise part.never_reached()
        for name in progress_bar(names, desc="quantizing", unit="layer"):
            if name in left:
                made[name] = part.make(name, seen)
                if work is not None:
                    work.save(part.unit(name), {name: made[name]})
                    part.let_go({name: made[name]})
            else:
                made |= work.load(part.unit(name), part.linears([name]))
    return made


def _groups(part: Part) -> Iterator[list[str]]:
    """Split the layers where their Gram matrices would exceed the limit."""
    group: list[str] = []
    size = 0
    for name, layer in part.layers.items():
        more = 4 * layer.in_features**2 if name in part.grams else 0
        if group and size + more > GRAM_LIMIT:
            yield group
            group, size = [], 0
        group.append(name)
        size += more
    yield group
