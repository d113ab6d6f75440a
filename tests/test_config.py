from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multirobust import catalog
from multirobust.config import (
    AttackConfig,
    DataConfig,
    DefenseConfig,
    ModelConfig,
    NormAttack,
    Recipe,
    ThreatConfig,
    TrainingConfig,
    load_recipe,
    shipped_recipes,
    to_toml,
)
from multirobust.errors import ConfigError, InputError


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def problems(source, overrides=()) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(source, overrides)
    return caught.value.problems


def test_an_empty_recipe_is_the_default_with_the_name_of_its_file(write):
    assert load_recipe(write("")) == Recipe(name="recipe")


def test_the_defaults_are_the_published_setting():
    recipe = Recipe()
    assert recipe.model.name == "wrn_28_10"
    assert recipe.defense.beta == 12
    training = recipe.training
    assert (training.epochs, training.batch_size) == (30, 128)
    assert (training.peak_lr, training.peak_at) == (0.21, 0.4)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)
    assert (recipe.evaluation.attack.linf.steps, recipe.evaluation.attack.l1.steps) == (50, 100)


def test_all_problems_are_told_at_once_each_with_path_rule_and_way_out(write):
    path = write(
        """
        defenses = ["mngac", "sat"]
        seeds = [-1]
        [data]
        name = "cifar"
        [model]
        widht = [8]
        [threats]
        linf = 0
        [attack.linf]
        steps = 0
        [training]
        epochs = "many"
        momentum = 1.0
        """
    )
    expected = [
        "data.name: Unknown data set: 'cifar'. Did you mean 'cifar10'? Known: cifar10, cifar100, ",
        "defenses: Unknown defense: 'mngac'. Did you mean 'mng_ac'?",
        "seeds.0: input should be greater than or equal to 0, got -1.",
        "model.widht: no such field. Did you mean 'widths'? Known: name, normalize, widths.",
        "threats.linf: input should be greater than 0, got 0.",
        "attack.linf.steps: input should be greater than or equal to 1, got 0.",
        "training.epochs: input should be a valid integer",
        "training.momentum: input should be less than 1, got 1.0.",
    ]
    found = problems(path)
    for start in expected:
        assert sum(line.startswith(start) for line in found) == 1, (start, found)
    with pytest.raises(ConfigError, match=r"data\.name(.|\n)*training\.momentum"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (
            "preset = 'offical'",
            "preset: input should be 'paper', 'official' or 'plus', got 'offical'",
        ),
        ("defenses = []", "defenses: "),
        ("defenses = [1]", "defenses.0: input should be a valid string, got 1"),
        ("seeds = []", "seeds: "),
        ("seeds = [1.5]", "seeds.0: input should be a valid integer"),
        ("data = 5", "data: input should be a valid dictionary"),
        ("[[data]]\nname = 'x'", "data: input should be a valid dictionary"),
        ("nmae = 'x'", "nmae: no such field. Did you mean 'name'?"),
        ("[trainig]\nepochs = 1", "trainig: no such field. Did you mean 'training'?"),
        ("[threats]\npreset = 'cifar'", "threats.preset: Unknown threat preset: 'cifar'. Did you"),
        ("[threats]\npreset = 4", "threats.preset: input should be a valid string, got 4"),
        ("[threats]\nl2 = nan", "threats.l2: "),
        ("[threats]\nl2 = inf", "threats.l2: "),
        ("[threats]\ndensity = 1.5", "threats.density: input should be less than or equal to 1"),
        ("[model]\nname = 'wrn2810'", "model.name: Unknown model: 'wrn2810'. Did you mean 'wrn_28"),
        ("[model]\nwidths = []\nname='small_cnn'", "model.widths: "),
        ("[model]\nwidths = [4]", "model.widths: only small_cnn has this field, the model is"),
        ("[training]\nbatch_size = 1", "training.batch_size: input should be greater than or"),
        ("[training]\nprecision = 'fp8'", "training.precision: input should be '32-true'"),
        ("[evaluation]\nsuite = 'quik'", "evaluation.suite: Unknown suite: 'quik'. Did you mean"),
        ("[evaluation.attack]\nkeep = 'frist'", "evaluation.attack.keep: input should be 'last'"),
        ("[defense]\nant_clean_share = 1", "defense.ant_clean_share: input should be less than"),
        ("defenses = ['sat', 'ant', 'sat']", "defenses: each may stand only once, got ['sat',"),
        ("seeds = [0, 0]", "seeds: each may stand only once, got [0, 0]"),
    ],
)
def test_a_broken_rule_is_told_with_its_path(write, text, start):
    found = problems(write(text))
    assert any(line.startswith(start) for line in found), found


def test_an_override_replaces_one_field_and_keeps_its_neighbors(write):
    path = write("[attack.linf]\nsteps = 7\nstep_size = 0.25")
    recipe = load_recipe(path, ["attack.linf.steps=5", "evaluation.attack.l1.steps=9"])
    assert recipe.attack.linf == NormAttack(steps=5, step_size=0.25)
    assert recipe.attack.l2 == AttackConfig().l2
    assert recipe.evaluation.attack.l1 == NormAttack(steps=9, step_size=1.0)
    assert recipe.evaluation.attack.keep == "best"


def test_an_override_keeps_the_default_neighbors_too(write):
    recipe = load_recipe(write(""), ["attack.linf.steps=5"])
    assert recipe.attack.linf == NormAttack(steps=5, step_size=1 / 255)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.epochs=3", lambda r: r.training.epochs == 3),
        ("training.passes=430", lambda r: r.training.passes == 430.0),
        (" training.peak_lr = 1e-2 ", lambda r: r.training.peak_lr == 0.01),
        ("data.name=digits", lambda r: r.data.name == "digits"),
        ("data.name='digits'", lambda r: r.data.name == "digits"),
        ("data.download=true", lambda r: r.data.download is True),
        ('defenses=["sat", "ant"]', lambda r: r.defenses == ("sat", "ant")),
        ("summary=two words = fine", lambda r: r.summary == "two words = fine"),
        ("model={name = 'small_cnn', widths = [8]}", lambda r: r.model.widths == (8,)),
    ],
)
def test_an_override_is_read_as_toml_or_as_text(write, override, read):
    assert read(load_recipe(write(""), [override]))


def test_the_last_of_several_overrides_counts(write):
    overrides = ["training.epochs=3", "training.epochs=4"]
    assert load_recipe(write(""), overrides).training.epochs == 4


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("training.epochs", "--set 'training.epochs': must be written path.to.field=value"),
        ("=3", "--set '=3': must be written path.to.field=value"),
        ("training..epochs=3", "--set 'training..epochs=3': must be written"),
        ("name.first=x", "--set 'name.first=x': 'name' is not a group of fields"),
        ("training.epoch=3", "training.epoch: no such field. Did you mean 'epochs'?"),
        ("training=3", "training: input should be a valid dictionary"),
        ("training.epochs=0", "training.epochs: input should be greater than or equal to 1, got 0"),
        ("training.passes=0", "training.passes: input should be greater than 0, got 0"),
        ("training.passes=inf", "training.passes: input should be a finite number, got inf"),
    ],
)
def test_a_bad_override_is_one_clear_line(write, override, start):
    found = problems(write("name = 'n'"), [override])
    assert len(found) == 1
    assert found[0].startswith(start)


def test_problems_of_overrides_and_of_the_file_are_told_together(write):
    found = problems(write("[training]\nepochs = 0"), ["model.nmae=x", "seeds"])
    assert len(found) == 3


def test_the_official_preset_fills_what_the_recipe_does_not_say(write):
    recipe = load_recipe(write("preset = 'official'"))
    assert recipe.defense.conditioning == "noise"
    assert recipe.defense.generator_optimizer == "sgd"
    assert recipe.defense.beta == 12
    paper = load_recipe(write("preset = 'paper'"))
    assert paper.defense == DefenseConfig()


def test_a_field_that_is_said_wins_over_the_preset(write):
    path = write("preset = 'official'\n[defense]\nconditioning = 'noise_and_image'")
    recipe = load_recipe(path)
    assert recipe.defense.conditioning == "noise_and_image"
    assert recipe.defense.generator_optimizer == "sgd"
    recipe = load_recipe(path, ["defense.generator_optimizer=gradient_descent"])
    assert recipe.defense.generator_optimizer == "gradient_descent"


def test_the_preset_may_come_from_an_override(write):
    recipe = load_recipe(write(""), ["preset=official"])
    assert recipe.defense.conditioning == "noise"


def test_a_preset_that_overrides_wins_over_the_file_and_loses_to_other_overrides(write):
    path = write("defenses = ['sat', 'mng_ac']")
    assert load_recipe(path, ["preset=plus"]).defenses == ("plus",)
    for overrides in (["preset=plus", "defenses=['sat']"], ["defenses=['sat']", "preset=plus"]):
        assert load_recipe(path, overrides).defenses == ("sat",)
    assert load_recipe("digits", ["preset=plus"]).defenses == ("plus",)
    with pytest.raises(ConfigError, match="preset: input should be"):
        load_recipe(path, ["preset=best"])


def test_a_recipe_made_in_python_has_the_preset_too():
    recipe = Recipe(preset="official")
    assert recipe.defense.conditioning == "noise"
    recipe = Recipe.model_validate({"preset": "official", "defense": {"beta": 3}})
    assert (recipe.defense.conditioning, recipe.defense.beta) == ("noise", 3)


def test_an_unknown_recipe_is_told_with_the_way_out():
    with pytest.raises(InputError, match=r"Unknown recipe: 'dmeo'.*give the path of a \.toml file"):
        load_recipe("dmeo")


def test_text_that_is_not_toml_is_one_clear_error(write):
    with pytest.raises(InputError, match=r"recipe\.toml' is not valid TOML: Invalid"):
        load_recipe(write("defenses = ["))


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path, kind):
    path = tmp_path / "x.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"x\.toml' cannot be read: "):
        load_recipe(path)


def test_every_shipped_recipe_loads_and_has_a_summary():
    for name, summary in shipped_recipes().items():
        recipe = load_recipe(name)
        assert recipe.summary == summary != ""


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().name = "x"


positive = st.floats(1e-12, 1e12)
counts = st.integers(1, 10**9)
text = st.text(st.characters(exclude_categories=("C",)), max_size=20) | st.sampled_from(
    ['"', "\\", "\n", '\\"\n', "a\tb", "#", "é"]
)
names = text.map(lambda name: re.sub(r"[/\\\x00-\x1f]", "", name).strip(".") or "a")
subsets = st.lists(st.sampled_from(sorted(catalog.DEFENSES)), min_size=1, unique=True)


@st.composite
def recipes(draw) -> Recipe:
    attack = st.builds(NormAttack, steps=counts, step_size=positive)
    return Recipe(
        name=draw(names),
        summary=draw(text),
        preset=draw(st.sampled_from(sorted(catalog.PRESETS))),
        defenses=tuple(draw(subsets)),
        seeds=tuple(draw(st.lists(st.integers(0, 2**63), min_size=1, unique=True))),
        data=DataConfig(
            folder=draw(st.none() | text),
            download=draw(st.booleans()),
            test_limit=draw(st.none() | counts),
        ),
        model=ModelConfig(
            name="small_cnn", widths=draw(st.none() | st.lists(counts, min_size=1).map(tuple))
        ),
        threats=ThreatConfig(linf=draw(st.none() | positive), density=draw(st.floats(1e-6, 1))),
        attack=AttackConfig(l2=draw(attack), keep=draw(st.sampled_from(["last", "best"]))),
        defense=DefenseConfig(
            beta=draw(st.floats(0, 1e6)),
            conditioning=draw(st.sampled_from(["noise", "noise_and_image"])),
        ),
        training=TrainingConfig(peak_lr=draw(positive), peak_at=draw(st.floats(0.01, 0.99))),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=recipes())
def test_a_recipe_written_as_toml_reads_back_equal(write, recipe):
    assert load_recipe(write(to_toml(recipe))) == recipe


@pytest.mark.parametrize("text", ["preset = ['x']", "preset = {}", "preset = 1"])
def test_a_preset_that_is_no_text_is_a_problem_as_any_other(write, text):
    assert any(line.startswith("preset: ") for line in problems(write(text)))


@pytest.mark.parametrize("character", ["\r", "\x00", "\x1f", "\x7f", "\x85"])
def test_control_characters_in_text_read_back_equal(write, character):
    recipe = Recipe(summary=f"a{character}b")
    assert load_recipe(write(to_toml(recipe))).summary == recipe.summary
