"""Put modules in place by their dotted names."""

from torch import nn

from ditquant.nn.linear import QuantLinear


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule `name` of a model."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def dequantize_model(model: nn.Module) -> nn.Module:
    """Replace every quantized layer by an nn.Linear of its decoded weight, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            linear.weight = nn.Parameter(
                module.weight.detach().as_subclass(type(module.codes.data)), requires_grad=False
            )
            linear.bias = module.bias
            set_module(model, name, linear)
    return model
