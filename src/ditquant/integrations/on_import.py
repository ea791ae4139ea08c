"""Register the format when diffusers is imported, not before: `import ditquant` alone stays fast."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _AfterDiffusers(MetaPathFinder):
    """Finds nothing itself: it lets the other finders look, and adds the registration to what they found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "diffusers":
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    import_module("ditquant.integrations.diffusers")


def register_with_diffusers() -> None:
    """Make diffusers load quantized checkpoints: now if it is imported already, else as soon as it is."""
    if "diffusers" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterDiffusers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterDiffusers())
