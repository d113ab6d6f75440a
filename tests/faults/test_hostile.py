"""Files made by an enemy: no code in them runs, nothing leaves its folder, each is one error."""

from __future__ import annotations

import copy
import hashlib
import io
import random
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import all_options, train

from multirobust.cli.common import tell
from multirobust.config import Recipe, load_recipe
from multirobust.errors import CheckpointError, ConfigError, InputError, Interrupted, TrainingError
from multirobust.report.rendering import markdown_text
from multirobust.training import load_checkpoint
from multirobust.training.checkpoint import MAGIC

POISONS: list[Any] = [
    *(None, "text", -1, 10**30, float("nan"), True, [], {}, {"a": [1]}),
    *(torch.zeros(3), torch.zeros(2, 2, dtype=torch.complex64), torch.full((), torch.nan)),
    torch.zeros(1).expand(10**9),
]
EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>[a](javascript:alert(1))|`\n# big\x1b[2J"
)


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the way to each leaf and each branch of a checkpoint."""
    if path:
        yield path
    if isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from places(value, (*path, key))


def poisoned(content: dict, path: tuple, poison: Any) -> dict:
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = poison
    return content


def forge(folder: Path, content: Any) -> None:
    """Write a checkpoint as an enemy would: anything, with a digest that fits."""
    stream = io.BytesIO()
    torch.save(content, stream)
    digest = hashlib.sha256(stream.getvalue()).hexdigest().encode()
    (folder / "checkpoint.pt").write_bytes(MAGIC + digest + b"\n" + stream.getvalue())


def test_a_checkpoint_nested_without_end_is_one_error(tmp_path: Path):
    content: list[Any] = []
    content.append(content)
    forge(tmp_path, {"identity": content})
    with pytest.raises(CheckpointError, match="nested without end"):
        train("standard", tmp_path)


@pytest.mark.parametrize("defense", ["mng_ac", "ramp", "sat"])
def test_a_checkpoint_with_anything_in_any_place_is_refused_or_trained_from(
    defense: str, tmp_path: Path, long: bool
):
    settings = all_options(tmp_path / "start.pt") if defense == "sat" else {}
    options = settings.pop("options", {})
    steps = iter([False] * 4 + [True])
    with pytest.raises(Interrupted):
        train(defense, tmp_path, options=options | {"stop": lambda: next(steps)}, **settings)
    content = load_checkpoint(tmp_path)
    cases = [(path, number) for path in places(content) for number in range(len(POISONS))]
    dice = random.Random(defense)
    for path, number in dice.sample(cases, 500 if long else 12):
        for file in tmp_path.glob("checkpoint*"):
            file.unlink()
        forge(tmp_path, poisoned(content, path, POISONS[number]))
        try:
            train(defense, tmp_path, options=options, **settings)
        except (CheckpointError, TrainingError):
            pass
        except Exception as error:
            pytest.fail(f"{path} = {POISONS[number]!r}: {type(error).__name__}: {error}")


@pytest.mark.parametrize(
    "name", ["../../outside", "/outside", "a/b", "a\\b", "..", ".", "", "a\nb", "\x1b[31m", "a\x00"]
)
def test_the_name_of_a_recipe_is_no_way_out_of_the_folder_of_runs(name: str, tmp_path: Path):
    file = tmp_path / "recipe.toml"
    text = "".join(f"\\u{ord(c):04x}" for c in name)
    file.write_text(f'name = "{text}"\n', "utf-8")
    with pytest.raises(ConfigError, match="name: must be the name of a folder"):
        load_recipe(file)
    with pytest.raises(ConfigError, match="name: must be the name of a folder"):
        load_recipe("digits", [f"name='{name}'"] if name.isprintable() else [f'name="{text}"'])


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "{a=" * 20_000,
        "a." * 4_000 + "b = 1",
        "seeds = [" + "9" * 5000 + "]",
        "training.peak_lr = 1e999",
        "name = '''" + "x" * 10_000_000 + "'''\nsummary = 1",
        "\ufeffname = 'a'",
        "defenses = [" + "'sat'," * 10_000 + "]",
        "[data]\nname = 'digits'\nname = 'cifar10'",
        "__class__ = 1",
        "data.__init__ = 1",
        'model.name = \'__import__("os").system("touch outside")\'',
    ],
    ids=lambda text: text[:16],
)
def test_a_recipe_made_to_break_the_reader_is_one_error(text: str, tmp_path: Path):
    file = tmp_path / "recipe.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(InputError):
        load_recipe(file)


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000, "{a=" * 20_000])
def test_an_override_made_to_break_the_reader_is_one_error(value: str):
    with pytest.raises(ConfigError, match=r"training\.epochs"):
        load_recipe("digits", [f"training.epochs={value}"])


def test_a_recipe_cannot_name_code(tmp_path: Path):
    for field in ("model.name", "evaluation.suite", "defenses", "threats.preset"):
        value = "['os:system']" if field == "defenses" else "os:system"
        with pytest.raises(ConfigError, match="os:system"):
            load_recipe("digits", [f"{field}={value}"])
    assert Recipe().name == "custom"


@pytest.mark.parametrize("name", ["run.json", "training.json", "outcomes.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "null", "[]", "{}"])
def test_json_made_to_break_the_reader_is_one_error(name, text, one: Path, multirobust):
    folder = one / "evaluation" / "quick" if name == "outcomes.json" else one
    (folder / name).write_text(text, "utf-8")
    answer = multirobust("compare", one)
    assert answer.code == 1
    assert answer.err.startswith("Error: ")


def test_a_foreign_manifest_is_one_error(one: Path, multirobust):
    import json

    path = one / "evaluation" / "quick" / "outcomes.json"
    content = json.loads(path.read_text("utf-8"))
    for manifest in ([], "text", None, 1):
        path.write_text(json.dumps(content | {"manifest": manifest}), "utf-8")
        answer = multirobust("compare", one)
        assert (answer.code, answer.err.startswith("Error: ")) == (1, True)


def test_control_characters_do_not_reach_the_terminal(capsys):
    tell("a\x1b[2Jb\x07\x9bc\rd\ne\tf")
    assert capsys.readouterr().err == "a [2Jb  c d\ne\tf\n"


class Tags(HTMLParser):
    """Collect the tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def test_names_of_classes_in_a_model_card_are_text_and_nothing_else(one: Path):
    from multirobust.experiment import find_runs
    from multirobust.experiment.model_card import model_card

    (run,) = find_runs([one])
    config = {
        "defense": "standard",
        "seed": 0,
        "architecture": "small_cnn",
        "data": EVIL,
        "classes": 2,
        "class_names": [EVIL, "b"],
        "channels": 1,
        "image_size": [8, 8],
        "threats": {"linf": 0.1},
    }
    card = model_card(run, config, [])
    body = card.partition("\n---\n")[2]
    assert Tags(body).found == []
    assert "\n# big" not in body
    assert "](" not in body.replace("\\](", "")
    assert "\x1b" not in body


def test_text_in_markdown_stays_on_one_line_and_makes_no_tag_and_no_link():
    shown = markdown_text(EVIL)
    assert "\n" not in shown
    assert Tags(shown).found == []
    assert "](" not in shown.replace("\\](", "")
