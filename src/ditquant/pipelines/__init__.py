"""How diffusers pipelines are asked to paint: their prompts, their settings, and their errors in one line."""

from ditquant.pipelines.call import clear_errors, quiet
from ditquant.pipelines.conditions import accepted, conditions
from ditquant.pipelines.settings import settings_of

__all__ = ["accepted", "clear_errors", "conditions", "quiet", "settings_of"]
