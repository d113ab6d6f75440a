"""What an evaluation is to do, block by block and attack by attack, in one process or several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.data import Split
from multirobust.errors import lookup_error
from multirobust.evaluation.blocks import Shard, blocks_of
from multirobust.evaluation.display import EvaluationDisplay, NoDisplay
from multirobust.evaluation.named import MODES, Suite
from multirobust.evaluation.partial import PartialResults
from multirobust.evaluation.runner import Runner
from multirobust.evaluation.suite_run import SuiteRun

__all__ = ["Course", "Part", "facts_of", "split_digest"]


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """Some attacks, in their order, on one block of images.

    No other part of an evaluation changes what is found here: a block has random numbers of its
    own, and an attack depends on the earlier ones of its part alone.

    Args:
        attacks: Their names.
        start: Position of the first image of the block.
        stop: Position after its last.
    """

    attacks: tuple[str, ...]
    start: int
    stop: int

    def __str__(self) -> str:
        named = " to ".join(dict.fromkeys((*self.attacks[:1], *self.attacks[-1:])))
        return f"{named} on images {self.start} to {self.stop - 1}"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """A model, its images, the attacks, and all that decides what they find.

    Args:
        model: Maps images in [0, 1] to logits.
        split: The images of the whole evaluation.
        suite: The attacks.
        mode: See `evaluate_suite`.
        batch_size: Images a pass.
        block_size: Images that are attacked together.
        shard: Which of the blocks.
        seed: Of the attacks' random starts.
        device: Where to run.
        keep_images: Whether the adversarial images are kept.

    Raises:
        InputError: If the mode is unknown, or the images cannot be cut so.
    """

    model: nn.Module
    split: Split
    suite: Suite
    mode: str
    batch_size: int
    block_size: int
    shard: Shard
    seed: int
    device: torch.device
    keep_images: bool

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise lookup_error("mode", self.mode, MODES)
        blocks_of(len(self.split), self.block_size, self.shard)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the outcomes' manifest says of the evaluation."""
        return {
            "suite": self.suite.name,
            "mode": self.mode,
            "seed": self.seed,
            "shard": str(self.shard),
            "batch_size": self.batch_size,
            "block_size": self.block_size,
            **facts_of(self.model, self.split),
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides what is found, as JSON values."""
        attacks = [[named.name, repr(named.attack)] for named in self.suite.attacks]
        return self.facts | {"attacks": attacks, "keep_images": self.keep_images}

    @property
    def blocks(self) -> list[range]:
        """Positions of the images of the shard, block by block."""
        return blocks_of(len(self.split), self.block_size, self.shard)

    def runner(self, report: Callable[[str], None] = lambda line: None) -> Runner:
        """Return what attacks the model."""
        return Runner(
            self.model,
            device=self.device,
            batch_size=self.batch_size,
            seed=self.seed,
            keep_images=self.keep_images,
            report=report,
        )

    def parts(self, done: PartialResults) -> tuple[Part, ...]:
        """Return the parts that are not done, each as small as it can be on its own."""
        groups = {
            "breakdown": lambda named: named.name,
            "per_threat": lambda named: named.threat_name,
            "cascade": lambda named: "",
        }
        chains: dict[str, list[str]] = {}
        for named in self.suite.attacks:
            chains.setdefault(groups[self.mode](named), []).append(named.name)
        return tuple(
            Part(attacks=tuple(chain), start=block.start, stop=block.stop)
            for block in self.blocks
            for chain in chains.values()
            if not all(done.has(name, block.start) for name in chain)
        )

    def attack(self, part: Part, folder: Path) -> None:
        """Run the attacks of a part and keep what they find where the whole evaluation looks.

        Args:
            part: One of `parts`.
            folder: Of the partial results, made by the process that plans the evaluation.

        Raises:
            RunError: If the folder is of another evaluation: this process has other weights,
                images or attacks than the one that made it.
        """
        run = SuiteRun(
            self.runner(),
            self.split,
            [range(part.start, part.stop)],
            mode=self.mode,
            partial=PartialResults(folder, self.identity, joining=True),
            display=NoDisplay(),
        )
        for named in self.suite.attacks:
            if named.name in part.attacks:
                run.column(named)

    def whole(self, runner: Runner, done: PartialResults, display: EvaluationDisplay) -> SuiteRun:
        """Return the run of the attacks on all blocks of the shard."""
        return SuiteRun(
            runner, self.split, self.blocks, mode=self.mode, partial=done, display=display
        )


def facts_of(model: nn.Module, split: Split) -> dict[str, Any]:
    """Return what identifies a model and the images that it is attacked on."""
    return {
        "images": len(split),
        "shape": list(split.images.shape[1:]),
        "split_digest": split_digest(split),
        "model_digest": _digest(*model.state_dict().values()),
    }


def split_digest(split: Split) -> str:
    """Return the SHA-256 of the pixels and labels."""
    return _digest(split.images, split.labels)


def _digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            data = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
