"""One model to quantize: what is quantized in it, and what that needs to see."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from ditquant.errors import DitQuantError
from ditquant.finite import check_finite
from ditquant.models import Layer
from ditquant.nn import QuantLinear, set_module
from ditquant.on_disk import lies_on_disk, values
from ditquant.stats import SAMPLE_SIZE, LayerStats


@dataclass(frozen=True)
class Part:
    """A model (a component of a pipeline, or "" alone) and its layers that are quantized, by name.

    `data` are those that statistics change, `grams` those that need a Gram matrix, `curved` those that
    need their output's curvature; `make` quantizes one of them with the statistics that there are, which takes about
    `effort` seconds.
    """

    name: str
    model: nn.Module
    layers: Mapping[str, Layer]
    data: Collection[str]
    grams: Collection[str]
    make: Callable[[str, Mapping[str, LayerStats]], QuantLinear]
    seed: int = 0
    curved: Collection[str] = ()
    effort: Mapping[str, float] = field(default_factory=dict)

    def linears(self, names: Collection[str]) -> dict[str, nn.Linear]:
        """Return the modules of some layers."""
        return {name: self.model.get_submodule(name) for name in self.layers if name in names}

    def fit_seconds(self, names: Iterable[str]) -> float:
        """Return about how long some layers take to be fitted."""
        return sum(self.effort.get(name, 0.0) for name in names)

    def unit(self, name: str) -> str:
        """Name a piece of work after this part."""
        return f"{self.name}.{name}" if self.name else name

    def let_go(self, made: Mapping[str, QuantLinear]) -> None:
        """Empty quantized layers that a work folder holds, if the model's blocks are not in memory either."""
        if lies_on_disk(self.model):
            for layer in made.values():
                layer.to("meta")

    def never_reached(self) -> DitQuantError:
        """Make the error for a calibration that ran none of the layers that need it."""
        what = repr(self.name) if self.name else f"this {type(self.model).__name__}"
        return DitQuantError(
            f"calibration reached none of the {len(self.data)} layers of {what}. Calibrate with prompts, settings or a "
            "forward function that run it, or without any to quantize data-free."
        )

    @contextmanager
    def swapped(self, made: Mapping[str, QuantLinear]) -> Iterator[None]:
        """Put quantized layers in place for a while."""
        old = self.linears(made)
        try:
            self._put(made)
            yield
        finally:
            self._put(old)

    def _put(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            for alias in (name, *self.layers[name].aliases):
                set_module(self.model, alias, module)


def statistics_bytes(layer: Layer, gram: bool, curved: bool = False) -> int:
    """Return the memory of a layer's statistics."""
    curvature = 4 * layer.out_features**2 if curved else 0
    return 4 * layer.in_features * (SAMPLE_SIZE + (layer.in_features if gram else 0)) + curvature


def check_weights(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Refuse weights that are not loaded or not floating-point numbers, and any parameter that is not finite.

    A model that lies on disk is read once, tensor by tensor.
    """
    weights = {f"{layer.name}.weight": layer.name for layer in layers}

    def state() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in values(model):
            if name in weights:
                _check_weight(weights[name], tensor)
            yield name, tensor

    check_finite(model, state())


def _check_weight(name: str, weight: Tensor) -> None:
    if weight.is_meta:
        raise DitQuantError(
            f"the weight of {name!r} is not loaded. Quantize before offloading, on the CPU or one device."
        )
    if not weight.dtype.is_floating_point or weight.element_size() == 1:
        raise DitQuantError(
            f"the weight of {name!r} is stored as {weight.dtype}. Load the model in bfloat16 or float32."
        )
