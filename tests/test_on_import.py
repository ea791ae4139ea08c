"""The format is registered when diffusers is imported, whatever comes first."""

import subprocess
import sys

import pytest

REGISTERED = "from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m; assert 'ditquant' in m"


@pytest.mark.parametrize(
    "begin",
    [
        "import ditquant, diffusers",
        "import diffusers, ditquant",
        "import ditquant.integrations.diffusers",
        "import ditquant, importlib.util; importlib.util.find_spec('diffusers'); import diffusers",
        "import ditquant, sys; assert 'torch' not in sys.modules",
    ],
)
def test_registered(begin):
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", f"{begin}; {REGISTERED}"], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()


def test_without_diffusers_the_import_still_works():
    code = (
        "import sys, ditquant\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ == 'ditquant.integrations.on_import']\n"
        "assert len(sys.meta_path) == 1\n"
        "try:\n    import diffusers\nexcept ModuleNotFoundError:\n    print('none')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "none\n", run.stderr
