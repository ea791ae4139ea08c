"""Who may import whom: data flows one way, and loading a model pulls in nothing that makes one."""

import ast
import subprocess
import sys
from pathlib import Path

import ditquant

ROOT = Path(ditquant.__file__).parent
ORDER = [
    {"errors", "words", "progress", "quiet", "config_source"},
    {"registry", "finite", "atomic", "distributed", "hub", "skeleton", "stored", "recipe_file"},
    {"threshold"},
    {"specs", "on_disk"},
    {"stats", "formats", "choice"},
    {"kernels"},
    {"transforms", "quantizers", "models", "attention", "pipelines"},
    {"nn", "rule"},
    {"recipe", "groups", "effort"},
    {"sizes", "integrations", "calibration"},
    {"fitting", "shards"},
    {"engine"},
    {"auto", "max_memory"},
    {"sources"},
    {"evaluation", "out_of_core"},
    {"search", "bench"},
    {"cli"},
    {"__main__"},
]
LAZY = {("integrations", "engine"), ("integrations", "recipe")}  # quantizing on the fly, when it is asked for


def top_level_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ditquant."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "ditquant":
            found |= {alias.name for alias in node.names}
    return found


def test_imports_follow_the_stream():
    level = {name: i for i, names in enumerate(ORDER) for name in names}
    for path in ROOT.rglob("*.py"):
        package = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if package in ("__init__", "assets"):
            continue
        assert package in level, f"{package} has no place in the stream"
        for imported in top_level_imports(path):
            if imported == package or (package, imported) in LAZY:
                continue
            assert level[imported] < level[package], f"{path.relative_to(ROOT)} imports {imported} against the stream"


def test_loading_pulls_in_no_quantizing():
    """Nor a kernel for other machines; diffusers may load Triton itself."""
    triton = [
        f"ditquant.kernels.triton.{p.stem}"
        for p in ROOT.glob("kernels/triton/*.py")
        if "\nimport triton" in p.read_text()
    ]
    assert triton
    unwanted = (
        *("ditquant.engine", "ditquant.quantizers", "ditquant.calibration", "ditquant.recipe"),
        *("ditquant.evaluation", "ditquant.cli", *triton),
    )
    code = (
        "import sys, ditquant; "
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules; "
        "import diffusers; "
        "assert 'ditquant.integrations.diffusers' in sys.modules; "
        f"bad = [m for m in sys.modules if m.startswith({unwanted!r})]; "
        "sys.exit(' '.join(bad) or 0)"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
