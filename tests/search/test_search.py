"""A search keeps what it has scored, quantizes nothing twice, and what it scored is what is deployed, to the bit."""

import sys

import pytest
import torch
from diffusers import DiTPipeline

from ditquant.engine import match
from ditquant.errors import DitQuantError
from ditquant.integrations.diffusers import transformers_of
from ditquant.nn import QuantLinear
from ditquant.search import Candidate, Scorer, Searched, deploy, load_found, save_found
from ditquant.search.confirm import COUNT, ROUNDS, SEED_FRESH
from ditquant.search.model import model_digest, search_model
from ditquant.search.population import children
from ditquant.search.space import Space
from ditquant.search.study import MUTATION, POPULATION
from tests.search.built import CLASSES, question, tiny_dit_pipeline

LAYERS = sys.modules["ditquant.search.layers"]
ALONE = 2 * 6  # layers, each of which is first scored alone


@pytest.fixture
def scored(monkeypatch):
    """Count how often a candidate is scored."""
    counts = []
    errors = Scorer.errors
    monkeypatch.setattr(Scorer, "errors", lambda self: counts.append(1) or errors(self))
    return counts


def run(folder, trials=7, pipeline=None, **changes):
    return search_model(pipeline or tiny_dit_pipeline(), question(**changes), folder / "journal.log", trials)


def layers_of(pipeline) -> dict[str, QuantLinear]:
    (model,) = transformers_of(pipeline).values()
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}


def test_the_search_leaves_the_model_and_scores_uniform_sizes_first(tmp_path):
    pipeline = tiny_dit_pipeline()
    _, searched = run(tmp_path, 4, pipeline)
    assert sorted(c.label for c in searched.candidates) == ["full row", "g = 128", "g = 32", "g = 64"]
    assert layers_of(pipeline) == {}
    fresh = tiny_dit_pipeline().transformer.state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in pipeline.transformer.state_dict().items())


def test_best_and_front_are_what_a_search_by_hand_finds(tmp_path):
    _, searched = run(tmp_path, 12)
    points = [(c.error, c.cost.total) for c in searched.candidates]
    assert len(points) == len(set(points)) > 4
    front = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert {(c.error, c.cost.total) for c in searched.front} == front
    affordable = [c for c in searched.candidates if c.cost.total <= searched.budget.total]
    assert [bool(c.fresh) for c in affordable] == [i < COUNT for i in range(len(affordable))]
    assert sum(searched.best.fresh) == min(sum(c.fresh) for c in affordable if c.fresh)
    assert searched.budget.total == next(c.cost.total for c in searched.candidates if c.label == "g = 128")


def test_an_error_is_that_of_the_latents(tmp_path):
    """Computed again from a copy whose layers were quantized by the engine, uniform 64."""
    from dataclasses import replace

    from ditquant.engine import quantize
    from ditquant.recipe import Recipe

    _, searched = run(tmp_path, 4)
    rules = [
        replace(
            rule,
            weight=replace(rule.weight, group_size=64),
            activation=replace(rule.activation, group_size=64),
        )
        if rule.activation
        else rule
        for rule in Recipe.load("qdit-w4a8").rules
    ]
    full, other = tiny_dit_pipeline(), tiny_dit_pipeline()
    quantize(other, Recipe("by hand", tuple(rules)))
    latents = [Scorer(p, CLASSES, 0, {"steps": 2}).paint().latents.double().numpy() for p in (full, other)]
    expected = [((b - a) ** 2).sum() / (a**2).sum() for a, b in zip(*latents, strict=True)]
    found = next(c for c in searched.candidates if c.label == "g = 64")
    assert found.errors == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("recipe", ["qdit-w3a8", "qdit-gptq-w3a8", "lrq-w4a8"])
def test_what_is_deployed_is_what_was_scored(tmp_path, recipe):
    found, searched = run(tmp_path, 6, recipe=recipe)
    save_found(tmp_path, found, searched)
    pipeline = tiny_dit_pipeline()
    read = load_found(tmp_path)
    assert read == found
    plan = deploy(pipeline, read, model_digest(pipeline))
    assert plan.hash() == found.plan.hash()
    assert scores(pipeline, {"steps": 2}) == searched.best.errors
    for name, gene in searched.best.genome.items():
        assert layers_of(pipeline)[name].plan.weight.group_size == gene.groups


def test_bits_rotations_and_formats_are_deployed_as_they_were_scored(tmp_path, monkeypatch):
    """Of a plan that needs less statistics than the search has seen."""

    def turned(searched: Searched) -> Candidate:
        return next(c for c in searched.candidates if "hadamard" in {gene.rotation for gene in c.genome.values()})

    monkeypatch.setattr(Searched, "best", property(turned))
    genes = ("groups", "bits", "rotation", "format")
    found, searched = run(tmp_path, 50, groups=[64], genes=genes, settings={"steps": 1})
    for aspect, least in (("bits", 4), ("rotation", 3), ("format", 2)):
        assert len({getattr(gene, aspect) for gene in searched.best.genome.values()}) >= least
    pipeline = tiny_dit_pipeline()
    deploy(pipeline, found, model_digest(pipeline))
    assert scores(pipeline, {"steps": 1}) == searched.best.errors


class Turns(DiTPipeline):
    """A pipeline with two transformers: the second one takes the steps below the middle."""

    def __init__(self, transformer, transformer_2, vae, scheduler):
        super().__init__(transformer, vae, scheduler)
        self.register_modules(transformer_2=transformer_2)

        def late(_module, args, kwargs, out):
            return self.transformer_2(*args, **kwargs) if int(kwargs["timestep"].max()) < 500 else out

        transformer.register_forward_hook(late, with_kwargs=True)


def two_transformers() -> Turns:
    one, other = tiny_dit_pipeline(0), tiny_dit_pipeline(1)
    pipeline = Turns(one.transformer, other.transformer, one.vae, one.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_two_transformers_are_searched_together(tmp_path):
    settings = {"steps": 4, "guidance": 1.0}
    found, searched = run(tmp_path, 5, two_transformers(), groups=[64], recipe="qdit-gptq-w3a8", settings=settings)
    save_found(tmp_path, found, searched)
    names = set(searched.best.genome)
    assert len(names) == 24 and {name.split(".")[0] for name in names} == {"transformer", "transformer_2"}
    pipeline = two_transformers()
    deploy(pipeline, load_found(tmp_path), model_digest(pipeline))
    assert scores(pipeline, settings, two_transformers()) == searched.best.errors
    for name, part in transformers_of(pipeline).items():
        plan = part.config.quantization_config.plan
        assert {f"{name}.{layer}" for layer in plan.layers} >= {n for n in names if n.startswith(f"{name}.")}


def scores(pipeline, settings, full=None, seed=0) -> tuple[float, ...]:
    scorer = Scorer(full or tiny_dit_pipeline(), CLASSES, seed, settings)
    scorer.see_truth()
    scorer.pipeline = pipeline
    return tuple(scorer.errors())


def test_nothing_is_quantized_or_scored_twice(tmp_path, monkeypatch, scored):
    made = []
    quantize = LAYERS.quantize_layer
    monkeypatch.setattr(
        LAYERS, "quantize_layer", lambda *a, **k: made.append((a[1].name, a[2].weight.group_size)) or quantize(*a, **k)
    )
    _, searched = run(tmp_path, 12, groups=[128])  # only four genomes: most are drawn again
    assert len(made) == len(set(made))
    again = ROUNDS * sum(bool(c.fresh) for c in searched.candidates)
    assert len(scored) - ALONE - again == len(searched.candidates) <= 4


def test_a_search_goes_on(tmp_path, scored):
    _, first = run(tmp_path, 5)
    before = len(scored)
    _, second = run(tmp_path, 9)
    again = [{tuple(c.genome.items()) for c in searched.candidates if c.fresh} for searched in (first, second)]
    assert before <= 5 + ALONE + ROUNDS * len(again[0])
    done = len(scored)
    assert done <= 9 + ALONE + ROUNDS * len(again[0] | again[1])
    kept = {(tuple(c.genome.items()), c.errors) for c in second.candidates}
    assert {(tuple(c.genome.items()), c.errors) for c in first.candidates} <= kept
    run(tmp_path, 9)
    assert len(scored) == done, "a finished search scores nothing"


def test_the_best_are_painted_again_from_seeds_of_their_own(tmp_path):
    found, searched = run(tmp_path, 12)
    pipeline = tiny_dit_pipeline()
    deploy(pipeline, found, model_digest(pipeline))
    seeds = [SEED_FRESH + i * len(CLASSES) for i in range(ROUNDS)]
    fresh = [e for seed in seeds for e in scores(pipeline, {"steps": 2}, seed=seed)]
    assert searched.best.fresh == tuple(fresh) and len(set(fresh) | set(searched.best.errors)) == 5 * len(CLASSES)


def test_a_candidate_that_only_its_samples_flatter_is_not_deployed(tmp_path, monkeypatch):
    """The one of least error gets the largest errors on fresh seeds."""
    errors, first = Scorer.errors, []

    def turned(self):
        found = errors(self)
        if self.seed < SEED_FRESH:
            return found
        first.append(self)
        return [100.0 * e for e in found] if len(first) <= ROUNDS else found

    monkeypatch.setattr(Scorer, "errors", turned)
    _, searched = run(tmp_path, 12)
    affordable = [c for c in searched.candidates if c.cost.total <= searched.budget.total]
    assert searched.best is not affordable[0] and searched.best in affordable


def test_a_search_that_was_stopped_in_a_candidate_goes_on(tmp_path, monkeypatch):
    errors = Scorer.errors
    count = iter(range(100))

    def stop(self):
        if next(count) == ALONE + 2:
            raise KeyboardInterrupt
        return errors(self)

    monkeypatch.setattr(Scorer, "errors", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 9)
    _, searched = run(tmp_path, 9)
    assert {"g = 32", "g = 64", "g = 128", "full row"} <= {c.label for c in searched.candidates}


def trials_in(folder) -> list[str]:
    """Return what a journal holds besides the notes that it was opened."""
    return [line for line in (folder / "journal.log").read_text().splitlines() if '"op_code":0' not in line]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"recipe": "qdit-w3a8"}, "recipe"),
        ({"seed": 1}, "score"),
        ({"budget": "g64"}, "budget"),
        ({"groups": [32]}, "genes"),
        ({"pipeline": 1}, "model"),
    ],
)
def test_a_study_of_something_else_is_refused(tmp_path, other, what):
    run(tmp_path, 1)
    before = trials_in(tmp_path)
    if "pipeline" in other:
        other = {"pipeline": tiny_dit_pipeline(seed=1)}
    with pytest.raises(DitQuantError, match=rf"is of another search \(other {what}\)"):
        run(tmp_path, 2, **other)
    assert trials_in(tmp_path) == before


def test_plans_that_are_refused(tmp_path):
    with pytest.raises(DitQuantError, match=r"holds no plan\.json. Give the folder of ditquant search"):
        load_found(tmp_path)
    found, searched = run(tmp_path, 1)
    with pytest.raises(DitQuantError, match="Its search has not ended: give the same search command again"):
        load_found(tmp_path)
    save_found(tmp_path, found, searched)
    other = tiny_dit_pipeline(seed=1)
    with pytest.raises(DitQuantError, match="found for other weights"):
        deploy(other, load_found(tmp_path), model_digest(other))
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text[:-20])
    with pytest.raises(DitQuantError, match=r"plan\.json is no plan"):
        load_found(tmp_path)
    (tmp_path / "plan.json").write_text(text.replace('"version": 1', '"version": 9', 1))
    with pytest.raises(DitQuantError, match="has version 9"):
        load_found(tmp_path)


def test_what_a_search_starts_from_is_in_its_first_population(tmp_path):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    run(tmp_path, 60)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    (summary,) = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=summary.study_name, storage=storage).trials
    generations = [t.system_attrs["NSGAIISampler:generation"] for t in trials if t.state.name == "COMPLETE"]
    assert generations[:POPULATION] == [0] * POPULATION and set(generations[POPULATION:]) == {1}


def test_the_rest_of_the_first_population_are_children_of_what_the_budget_can_pay():
    from random import Random

    (model,) = transformers_of(tiny_dit_pipeline()).values()
    space = Space.of(match(model, question().recipe))
    a, b = ({name: Random(i).choice(space.offers(name)) for name in space.choices} for i in range(2))
    made = children(space, [a, b], 200)
    inherited = [child[name] in (a[name], b[name]) for child in made for name in child]
    assert len(made) == 200 and sum(inherited) / len(inherited) > 1 - MUTATION - 0.02
    assert not all(inherited)
    assert all(child[name] in space.offers(name) for child in made for name in child)
    assert children(space, [a], 5) == []
