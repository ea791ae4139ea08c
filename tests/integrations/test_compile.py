"""torch.compile sees one graph, and computes what the eager model does."""

import pytest
import torch

from tests.integrations.built import quantized
from tests.tiny import inputs, run


@pytest.mark.parametrize("backend, mixed", [("eager", True), ("aot_eager", False)])
def test_one_graph(backend, mixed):
    model, truth = quantized(mixed=mixed), run(quantized(mixed=mixed))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        found = compiled(**inputs(model))[0]
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_compiled_models_save(tmp_path):
    model = quantized()
    compiled = torch.compile(model, backend="eager")
    compiled.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).state_dict().keys() == model.state_dict().keys()
