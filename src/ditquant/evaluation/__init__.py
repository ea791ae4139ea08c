"""Generate with many models from the same prompts and seeds, measure, and report."""

from ditquant.evaluation.charts import Chart
from ditquant.evaluation.compare import Sampling, compare
from ditquant.evaluation.comparison_folder import write_comparison
from ditquant.evaluation.generate import Generated, generate
from ditquant.evaluation.metrics import METRICS
from ditquant.evaluation.page import Section, write_page
from ditquant.evaluation.plots import Plot, drawn, plot_activation_outliers, plot_codebook
from ditquant.evaluation.results import ModelFacts, ModelResult, Results
from ditquant.evaluation.sliders import Gallery
from ditquant.evaluation.table import Column, Table, differences_table, results_table

__all__ = [
    "METRICS",
    "Chart",
    "Column",
    "Gallery",
    "Generated",
    "ModelFacts",
    "ModelResult",
    "Plot",
    "Results",
    "Sampling",
    "Section",
    "Table",
    "compare",
    "differences_table",
    "drawn",
    "generate",
    "plot_activation_outliers",
    "plot_codebook",
    "results_table",
    "write_comparison",
    "write_page",
]
