"""Put modules in place by their dotted names."""

from torch import nn

from ditquant.nn.linear import QuantLinear


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule `name` of a model."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def dequantize_model(model: nn.Module) -> nn.Module:
    """Replace every quantized layer by an nn.Linear of its decoded weight, in place."""
    linears: dict[nn.Module, nn.Linear] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, QuantLinear):
            if module not in linears:
                linears[module] = _decode(module)
            set_module(model, name, linears[module])
    return model


def _decode(layer: QuantLinear) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
    linear.bias = layer.bias
    return linear.train(layer.training)
