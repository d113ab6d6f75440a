"""Models from a line of text: functions, files, run folders, and libraries that are faked here."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from multirobust.config import load_recipe, to_toml
from multirobust.errors import InputError, RunError
from multirobust.models import build
from multirobust.models.external import fetch_run, load_external, model_arguments
from multirobust.models.weights import load_weights, read_weights, weights_digest

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean(dim=(2, 3)))

def net(width=4):
    return Net(width)

ready = Net()
number = 3

class Zoo:
    small = Net

def tensor():
    return torch.zeros(3)

def factory():
    return Net

def needs(depth):
    return Net()

def breaks():
    scale = {}
    return scale["missing"]

def leaves():
    raise SystemExit(2)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A current folder with a module of models, forgotten afterwards."""
    (tmp_path / "my_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def random_state(model: nn.Module, seed: int = 7) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=g) if value.is_floating_point() else value + 3
        for name, value in model.state_dict().items()
    }


def same(state: dict, other: dict) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


# Functions


@pytest.mark.parametrize(
    "spec",
    ["my_nets:net", "my_nets:Net", "my_nets:ready", "my_nets:Zoo.small", "my_nets.py:net"],
)
def test_what_a_name_leads_to_becomes_a_model_in_evaluation_mode(here, spec):
    path, threads = list(sys.path), torch.get_num_threads()
    model = load_external(spec)
    assert not any(part.training for part in model.modules())
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert sys.path == path
    assert torch.get_num_threads() == threads


def test_a_package_in_the_current_folder_and_a_file_elsewhere_are_found(here):
    (here / "zoo").mkdir()
    (here / "zoo" / "__init__.py").touch()
    (here / "zoo" / "nets.py").write_text(SOURCE)
    assert load_external("zoo.nets:net", options={"width": 6}).conv.out_channels == 6
    other = here / "elsewhere"
    other.mkdir()
    (other / "parts.py").write_text("from torch import nn\nlayer = nn.Linear\n")
    (other / "mine.py").write_text("import parts\ndef f():\n    return parts.layer(2, 3)\n")
    assert load_external(f"{other}/mine.py:f").out_features == 3
    assert load_external("elsewhere/mine.py:f").in_features == 2
    assert not any(str(other) == entry for entry in sys.path)


def test_an_installed_module_is_found(here):
    model = load_external("torch.nn:Linear", options={"in_features": 2, "out_features": 3})
    assert isinstance(model, nn.Linear)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_net:net", "there is no module 'my_net'. Did you mean 'my_nets'?"),
        ("my_nets.deeper:net", "there is no module 'my_nets.deeper'"),
        ("my_net.py:net", "there is no file 'my_net.py'. Did you mean 'my_nets.py'?"),
        ("my_nets:nett", "my_nets has no 'nett'. Did you mean 'net'? It has Net, Zoo, breaks"),
        ("my_nets:Zoo.big", "Zoo has no 'big'"),
        ("my_nets:number", "is not callable (int); name a function"),
        ("my_nets:tensor", "must return a torch.nn.Module, got Tensor"),
        ("my_nets:factory", "got the class Net; return the classifier itself"),
        ("my_nets:needs", "no arguments: missing a required argument: 'depth'"),
        ("my_nets:breaks", "raised KeyError in {here}/my_nets.py, line {breaks}: 'missing'"),
        ("my_nets:leaves", "raised SystemExit in {here}/my_nets.py, line {leaves}"),
        ("my_nets:", "is in no known form; write it as package.module:function"),
        ("../my_nets:net", "is in no known form"),
        (":net", "is in no known form"),
        ("small_cn", "Unknown model: 'small_cn'. Did you mean 'small_cnn'?"),
        ("no/such/folder", "Or give package.module:function, path/to/file.py:function, a run"),
    ],
)
def test_each_mistake_in_a_name_has_an_error_of_its_own(here, spec, message):
    path = list(sys.path)
    with pytest.raises(InputError) as caught:
        load_external(spec)
    lines = SOURCE.splitlines()
    breaks, leaves = (
        lines.index(line) + 1 for line in ('    return scale["missing"]', "    raise SystemExit(2)")
    )
    assert message.format(here=here, breaks=breaks, leaves=leaves) in str(caught.value)
    assert sys.path == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_library\n", "ModuleNotFoundError in {file}, line 1"),
        ("def f(:\n", "SyntaxError in {file}, line 1"),
        ("x = 1\ny = x / 0\n", "ZeroDivisionError in {file}, line 2"),
        ("def g(): raise ValueError('no')\nx = 1\ng()\n", "ValueError in {file}, line 1: no"),
        ("import torch\ntorch.ones(2) @ torch.ones(3)\n", "RuntimeError in {file}, line 2"),
    ],
)
@pytest.mark.parametrize("form", ["broken:f", "broken.py:f"])
def test_a_module_that_raises_is_named_with_its_line(here, text, message, form):
    (here / "broken.py").write_text(text)
    with pytest.raises(InputError) as caught:
        load_external(form)
    assert message.format(file=here / "broken.py") in str(caught.value)
    assert not {"broken", "multirobust_model_broken"} & set(sys.modules)


def test_arguments_are_checked_before_the_call(here):
    with pytest.raises(InputError, match=r"cannot be called with depth: got an unexpected keyword"):
        load_external("my_nets:net", options={"depth": 3})
    with pytest.raises(InputError, match="is a finished module"):
        load_external("my_nets:ready", options={"width": 3})


def test_arguments_are_read_as_toml_and_bare_words_as_text():
    texts = ["width=64", "widths=[8, 16]", "drop = 0.5", "name=wide", 'quoted="7"', "flag=true"]
    assert model_arguments(texts) == {
        "width": 64,
        "widths": [8, 16],
        "drop": 0.5,
        "name": "wide",
        "quoted": "7",
        "flag": True,
    }
    for wrong in (["width"], ["=3"], ["a b=3"], ["a=1", "a=2"]):
        with pytest.raises(InputError, match="write it as in width=64"):
            model_arguments(wrong)


# Weights


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module.model."])
@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"model_state_dict": state}, "optimizer": {"lr": 0.1}},
        lambda state: {"net": state, "acc": 71.3},
    ],
)
def test_weights_are_found_under_usual_keys_and_prefixes(here, prefix, nest):
    state = random_state(load_external("my_nets:net"))
    torch.save(nest({prefix + name: value for name, value in state.items()}), "w.pt")
    assert same(load_external("my_nets:net", weights="w.pt").state_dict(), state)


def test_safetensors_and_both_formats_of_torch_save_give_the_same_weights(here):
    state = random_state(load_external("my_nets:net"))
    save_file(state, "w.safetensors")
    torch.save(state, "w.pth")
    torch.save(state, "old.pt", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.pth", "old.pt"):
        assert same(load_external("my_nets:net", weights=here / name).state_dict(), state)


def test_half_precision_weights_are_loaded_in_the_precision_of_the_model(here):
    state = {k: v.half() if v.is_floating_point() else v for k, v in random_state(_net()).items()}
    save_file(state, "w.safetensors")
    model = load_external("my_nets:net", weights="w.safetensors")
    assert model.conv.weight.dtype == torch.float32
    assert torch.equal(model.conv.weight, state["conv.weight"].float())


def test_a_tied_weight_may_be_stored_once():
    model = nn.Sequential(*(nn.utils.skip_init(nn.Linear, 3, 3, bias=False) for _ in range(2)))
    model[1].weight = model[0].weight
    load_weights(model, {"0.weight": torch.eye(3)}, source="tied")
    assert torch.equal(model[1].weight, torch.eye(3))


def test_missing_and_unexpected_weights_are_one_error_with_counts(here):
    state = random_state(_net())
    extra = {f"old.{i}": torch.zeros(1) for i in range(7)}
    torch.save({"conv.bias": state["conv.bias"], **extra}, "w.pt")
    with pytest.raises(InputError) as caught:
        load_external("my_nets:net", weights="w.pt")
    message = str(caught.value)
    assert "7 weights missing: conv.weight, norm.weight, norm.bias" in message
    assert "and 2 more; 7 weights not expected" in message
    assert "7 weights not expected: old.0, old.1, old.2, old.3, old.4 and 2 more" in message
    assert "(the model has 9, the file 8)" in message
    with pytest.raises(InputError, match=r"1 weight not expected: criterion\.weight"):
        load_weights(
            _net(),
            {f"model.{k}": v for k, v in state.items()} | {"criterion.weight": torch.ones(1)},
            source="lightning",
        )


def test_other_shapes_are_an_error_that_shows_both(here):
    save_file(random_state(_net()), "w.safetensors")
    with pytest.raises(InputError, match=r"conv.weight \(4, 3, 3, 3\) for \(6, 3, 3, 3\)"):
        load_external("my_nets:net", weights="w.safetensors", options={"width": 6})


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("ran.txt", "w"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"state_dict": {}, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (nn.Linear(1, 1, device="meta"), "Linear"),
        ({"state_dict": {}, "evil": Payload()}, "open"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_code_is_refused_and_not_run(here, content, named, zipped):
    torch.save(content, "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=rf"holds \S*{named}, which needs code.*safetensors"):
        read_weights("w.pt")
    assert not (here / "ran.txt").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("cut", [0, 1, 100, 300, -10])
def test_a_damaged_file_is_one_error(here, name, cut):
    write = save_file if name.endswith("safetensors") else torch.save
    write(random_state(_net()), name)
    (here / name).write_bytes((here / name).read_bytes()[:cut])
    with pytest.raises(InputError, match="or damaged"):
        read_weights(name)


@pytest.mark.parametrize("content", [b"hello world", b"<html>" * 40, b"version https://git-lfs"])
def test_a_file_of_another_kind_is_one_error(here, content):
    for name in ("w.pt", "w.safetensors"):
        (here / name).write_bytes(content)
        with pytest.raises(InputError, match="or damaged"):
            read_weights(name)


def test_what_is_no_state_dict_is_told_what_it_is(here):
    for content, message in (
        ({"epoch": 3, "lr": 0.1}, r"it is a dict of 2 entries: epoch \(int\), lr \(float\)"),
        ([1, 2], "it is a list"),
        ({}, "holds no state dict"),
        ({"model": {"a": torch.ones(1)}, "net": {"a": torch.ones(1)}}, "several state dicts"),
    ):
        torch.save(content, "w.pt")
        with pytest.raises(InputError, match=message):
            read_weights("w.pt")


def test_a_path_to_no_file_is_told_apart(here):
    (here / "best.pt").touch()
    with pytest.raises(InputError, match=r"is missing. Did you mean 'best.pt'"):
        read_weights("bestt.pt")
    with pytest.raises(InputError, match="is a folder"):
        read_weights(here)
    (here / "best.h5").touch()
    with pytest.raises(InputError, match="rename it to what it is"):
        read_weights("best.h5")


def test_a_torchscript_file_is_told_apart(here):
    # A zip archive with code in it, as torch.jit.save writes it.
    import zipfile

    with zipfile.ZipFile("w.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"w/{name}", "3\n")
    with pytest.raises(InputError, match=r"TorchScript program.*torch.jit.load"):
        read_weights("w.pt")


def _net() -> nn.Module:
    return load_external("my_nets:net")


# The digest


def test_the_digest_changes_with_every_part_of_the_state_and_with_nothing_else(here):
    state = random_state(_net())

    def digest(changed: dict[str, torch.Tensor]) -> str:
        model = _net()
        model.load_state_dict({**state, **changed})
        return weights_digest(model)

    first = digest({})
    assert len(first) == 64
    assert digest({}) == first
    for name, value in state.items():
        other = value.clone()
        other.view(-1)[-1:].add_(1)
        assert digest({name: other}) != first, name
    model = _net()
    model.load_state_dict(state)
    assert weights_digest(model.to(memory_format=torch.channels_last)) == first
    assert weights_digest(model.train().requires_grad_(False)) == first
    assert weights_digest(model.double()) != first


def test_the_digest_takes_every_dtype_and_is_that_of_the_bytes():
    import hashlib

    model = nn.Module()
    model.register_buffer("b", torch.tensor(True))
    model.register_buffer("a", torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    model.register_buffer("c", torch.empty(0, 3, dtype=torch.int64))
    content = b"a torch.bfloat16 (2,)\n\x80\x3f\x00\x40b torch.bool ()\n\x01c torch.int64 (0, 3)\n"
    assert weights_digest(model) == hashlib.sha256(content).hexdigest()


# Architectures and runs of ours


@pytest.fixture
def stored(here) -> Path:
    """A run folder as far as a model is concerned, and the model in it."""
    recipe = load_recipe("digits", ["model.widths=[4, 4]"])
    model = build("small_cnn", classes=10, channels=1, mean=[0.3], std=[0.4], seed=3, widths=[4, 4])
    folder = here / "runs" / "sat-s0"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(to_toml(recipe))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def expected(x: torch.Tensor) -> torch.Tensor:
    model = build("small_cnn", classes=10, channels=1, mean=[0.3], std=[0.4], seed=3, widths=[4, 4])
    return model.eval()(x)


def test_a_run_folder_gives_its_model_back(stored, generator):
    x = torch.rand(3, 1, 8, 8, generator=generator)
    model = load_external(stored)
    assert torch.equal(model(x), expected(x))
    assert not model.training
    assert fetch_run(str(stored)) == stored
    assert fetch_run("small_cnn") is None
    assert fetch_run("my_nets:net") is None


def test_a_folder_that_is_no_run_is_told_apart(stored, here):
    with pytest.raises(RunError, match=r"recipe.toml and model.safetensors missing.*: sat-s0"):
        load_external(str(stored.parent))
    with pytest.raises(RunError, match="name a run folder"):
        load_external(str(here))
    with pytest.raises(InputError, match="brings its own weights"):
        load_external(str(stored), weights="w.pt")
    (stored / "recipe.toml").write_text("model = 3")
    with pytest.raises(RunError, match=r"recipe.toml is damaged"):
        load_external(str(stored))
    (stored / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"model.safetensors missing"):
        load_external(str(stored))


def test_an_architecture_takes_its_sizes_from_its_weights(stored, generator):
    x = torch.rand(3, 1, 8, 8, generator=generator)
    path, options = stored / "model.safetensors", {"widths": [4, 4]}
    model = load_external("small_cnn", weights=path, options=options)
    assert torch.equal(model(x), expected(x))
    given = {**options, "mean": [0.3], "std": [0.4]}
    model = load_external("small_cnn", weights=path, classes=10, channels=1, options=given)
    assert torch.equal(model(x), expected(x))
    with pytest.raises(InputError, match=r"mean must be that of the training.*leave it out"):
        load_external("small_cnn", weights=path, options={**given, "mean": [0.5]})
    with pytest.raises(InputError, match=r"shape differs: head.weight \(10, 4\) for \(7, 4\)"):
        load_external("small_cnn", weights=path, classes=7, options=options)
    with pytest.raises(InputError, match="of another model"):
        load_external("small_cnn", weights=path)
    with pytest.raises(InputError, match="Unknown option of small_cnn: 'width'"):
        load_external("small_cnn", weights=path, options={"width": 4})
    with pytest.raises(InputError, match="knows nothing without weights"):
        load_external("small_cnn")


def test_weights_without_statistics_take_the_given_ones(stored, generator):
    x = torch.rand(3, 1, 8, 8, generator=generator)
    state = read_weights(stored / "model.safetensors")
    plain = {f"module.{k}": v for k, v in state.items() if not k.startswith("normalize.")}
    torch.save(plain, "plain.pt")
    options = {"widths": [4, 4], "mean": [0.3], "std": [0.4]}
    model = load_external("small_cnn", weights="plain.pt", channels=1, options=options)
    assert torch.equal(model(x), expected(x))
    with pytest.raises(InputError, match=r"missing: normalize.mean, normalize.std"):
        load_external("small_cnn", weights="plain.pt", channels=1, options={"widths": [4, 4]})


# Hugging Face


def fake_hub(monkeypatch, download) -> None:
    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=download)
    )


def test_a_repository_is_downloaded_and_read_as_a_run(stored, generator, monkeypatch):
    calls = []

    def download(repository, *, revision, allow_patterns):
        calls.append((repository, revision))
        assert not any(pattern.endswith((".py", "*")) for pattern in allow_patterns)
        return str(stored if repository == "me/one" else stored.parent)

    fake_hub(monkeypatch, download)
    x = torch.rand(3, 1, 8, 8, generator=generator)
    for spec in ("hf:me/one", "hf:me/one@v1.0", "hf:me/many/sat-s0", "hf:me/many/sat-s0@main"):
        assert torch.equal(load_external(spec)(x), expected(x))
    assert calls == [("me/one", None), ("me/one", "v1.0"), ("me/many", None), ("me/many", "main")]
    with pytest.raises(RunError, match="name one of the runs in it: sat-s0"):
        load_external("hf:me/many")


def test_a_download_that_fails_is_one_error(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*args, **keywords):
        raise LocalEntryNotFoundError("no connection\nmany more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(RunError, match=r"LocalEntryNotFoundError: no connection\. Check the id"):
        load_external("hf:me/one")
    for spec in ("hf:one", "hf:", "hf:a/b c"):
        with pytest.raises(InputError, match="must be written hf:owner/name"):
            load_external(spec)


def test_a_missing_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'multirobust\[hub\]'"):
        load_external("hf:me/one")
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(InputError, match="pip install git"):
        load_external("robustbench:Carmon2019Unlabeled")


# RobustBench


def test_a_name_of_robustbench_is_loaded_with_its_data_set_and_threat(monkeypatch):
    calls = []

    def load_model(model_name, model_dir="./models", dataset="cifar10", threat_model="Linf"):
        calls.append((model_name, model_dir, dataset, threat_model))
        return {"Good": nn.Linear(2, 2, device="meta"), "Odd": 3}[model_name]

    package, module = types.ModuleType("robustbench"), types.ModuleType("robustbench.utils")
    module.load_model = load_model
    monkeypatch.setitem(sys.modules, "robustbench", package)
    monkeypatch.setitem(sys.modules, "robustbench.utils", module)
    monkeypatch.setattr(nn.Module, "cpu", lambda self: self)
    for spec, options in (
        ("robustbench:Good", {}),
        ("robustbench:Good:cifar100", {}),
        ("robustbench:Good:imagenet:l2", {"model_dir": "zoo"}),
    ):
        assert not load_external(spec, options=options).training
    assert calls == [
        ("Good", "./models", "cifar10", "Linf"),
        ("Good", "./models", "cifar100", "Linf"),
        ("Good", "zoo", "imagenet", "L2"),
    ]
    for spec, message in (
        ("robustbench:Bad", "could not load 'Bad' for cifar10 and Linf: KeyError: 'Bad'"),
        ("robustbench:Odd", r"must return a torch.nn.Module, got int"),
        ("robustbench:", "must be written robustbench:NAME"),
        ("robustbench:a:b:Linf:d", "must be written robustbench:NAME"),
        ("robustbench:a:b:l1", "Unknown RobustBench threat: 'l1'"),
    ):
        with pytest.raises(InputError, match=message):
            load_external(spec)


# The page


def test_the_python_of_the_page_runs(here, capsys):
    page = Path(__file__).parents[2] / "docs" / "any-model.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            file = re.match(r"# (\w+\.py)\n", block)
            if file:
                (here / file[1]).write_text(block)
            exec(compile(block, "any-model.md", "exec"), names)
    assert len(blocks) == 5
    assert "('cat', 'dog')" in capsys.readouterr().out


def test_the_command_of_the_page_parses():
    import typer

    from multirobust.cli import app

    page = Path(__file__).parents[2] / "docs" / "any-model.md"
    text = page.read_text("utf-8").replace("\\\n", "")
    commands = re.findall(r"^    multirobust (.*)$", text, re.M)
    assert len(commands) == 1
    name, *words = shlex.split(commands[0])
    command = typer.main.get_command(app).commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    command.make_context(name, words)
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= options
