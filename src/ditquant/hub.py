"""The hub, asked for single files first: one that cannot be reached is an error within seconds."""

from collections.abc import Iterable
from pathlib import Path

from ditquant.errors import DitQuantError, first_line

TIMEOUT_S = 10.0


def fetch(name: str, file: str, known: Iterable[str] = ()) -> Path | None:
    """Read a file of a hub model, from the cache if there is no connection; None if the model has no such file.

    Raises:
        DitQuantError: no such model, no access to it, or a hub that cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, file), timeout=TIMEOUT_S)
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise DitQuantError(
            f"cannot read {name!r} from the hub: {first_line(error)} Check the name and your access."
        ) from None
    except Exception as error:  # the client's errors without a connection have no common class
        cached = _cached(name, file)
        if cached is not None:
            return cached
        raise DitQuantError(
            f"{name!r} is no local folder or shipped model ({', '.join(known) or 'none'}), and the hub cannot be "
            f"reached ({type(error).__name__}). Check the name, or the connection."
        ) from None


def _cached(name: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # not a name that the hub allows
        return None
    return Path(found) if isinstance(found, str) else None


def download(name: str, is_pipeline: bool) -> Path:
    """Download the safetensors files of a model, or find them in the cache."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        if is_pipeline:
            return Path(DiffusionPipeline.download(name, use_safetensors=True))
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # whatever the connection, the disk or a missing file makes the client raise
        raise DitQuantError(
            f"cannot download {name!r}: {first_line(error)} Check the connection and the free space."
        ) from None
