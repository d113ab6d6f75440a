"""The configuration of the one training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from multirobust.config.section import Count, NonNegative, Positive, Section, Share

__all__ = ["TrainingConfig"]


_Drop = Annotated[float, Field(gt=0, lt=1, strict=True)]


class TrainingConfig(Section):
    """The one loop.

    Args:
        epochs: Passes over the training set.
        passes: Forward-backward passes of each training image, all counted: attacks, probes, meta
            steps, the loss; a lone forward or backward pass is half of one. The training ends with
            the step that reaches it, and the learning-rate schedule runs over it, in place of
            `epochs`; None trains `epochs`.
        batch_size: Images a step, on all devices together; at least 2.
        schedule: Of the learning rate: "triangular", up to the peak, down to zero; "cosine", from
            the peak down to zero; "piecewise", the peak, and a tenth of it after each of `drops`.
        peak_lr: Its greatest rate.
        peak_at: Where the top of the triangle lies, as a share of all steps, or of the passes.
        drops: Shares of all steps, or of the passes, after which the piecewise rate falls to a
            tenth; a third each is published for fine-tuning.
        momentum: Of SGD.
        nesterov: Whether that is Nesterov's.
        weight_decay: Of SGD, on every parameter.
        ema: Decay of the moving average of the weights, which is then the model; 0 averages nothing
            (0.995 is published for adversarial training).
        select: Which epoch's weights are the model: the "last", or that of the greatest accuracy
            against the "union" of the training attacks on the `data.validation` held-out images.
        select_epochs: Epochs between two measurements for `select`; the last is always measured,
            also where `passes` cut it short.
        gradient_clip: Greatest norm of the gradient of all weights; None leaves it as it is.
        label_smoothing: Share of each label that is spread over all classes, in the loss of the
            weights and not in the attacks.
        init_from: Weights to start from: a run folder that has been trained, or a file of weights.
        device: "auto", "cpu" or "cuda".
        devices: Processes that train together, each on a device of its own; they share the images
            of every step. Above 1, `multirobust train` starts them on this machine; those of
            torchrun and SLURM join, whatever their number.
        accumulate: Parts of a process's images that pass the model one after the other, to need
            less memory. What MNG-AC and RAMP do beside the loss still takes all of them at once.
        batch_statistics: What BatchNorm normalizes by when the images of a step are divided: those
            that pass together on one "device" (as is usual), or on all ("global": as one device
            would, for a message between them in every layer and pass). Running statistics are
            averages over the devices either way.
        precision: Fabric's name: "32-true", "bf16-mixed" or "64-true".
        memory_format: Of the weights: "contiguous", "channels_last", or "auto", which is
            channels_last in bf16-mixed on a CUDA device and contiguous otherwise.
        compile: Fuse the passes of attacks and loss by `torch.compile`; half a minute at the start.
        fold_batch_norm: Let attacks pass a copy whose BatchNorm is folded into the convolutions:
            fewer operations, equal up to rounding. Needs attack.batch_norm "running".
        replay: On a CUDA device, record attacks, meta step and loss as CUDA graphs and replay them:
            the same bits in a fraction of the time.
        checkpoint_seconds: Save at least this often, besides at the end of every epoch.
        log_steps: Steps between two lines of metrics.
    """

    epochs: Count = 30
    passes: Positive | None = None
    batch_size: Annotated[int, Field(ge=2, strict=True)] = 128
    schedule: Literal["triangular", "cosine", "piecewise"] = "triangular"
    peak_lr: Positive = 0.21
    peak_at: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.4
    drops: Annotated[tuple[_Drop, ...], Field(min_length=1)] = (1 / 3, 2 / 3)
    momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.9
    nesterov: Annotated[bool, Field(strict=True)] = False
    weight_decay: NonNegative = 5e-4
    ema: Share = 0.0
    select: Literal["last", "union"] = "last"
    select_epochs: Count = 1
    gradient_clip: Positive | None = None
    label_smoothing: Share = 0.0
    init_from: Annotated[str, Field(min_length=1)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Count = 1
    accumulate: Count = 1
    batch_statistics: Literal["device", "global"] = "device"
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    compile: Annotated[bool, Field(strict=True)] = False
    fold_batch_norm: Annotated[bool, Field(strict=True)] = False
    replay: Annotated[bool, Field(strict=True)] = True
    checkpoint_seconds: NonNegative = 300.0
    log_steps: Count = 50

    @field_validator("drops")
    @classmethod
    def _drops_rise(cls, drops: tuple[float, ...]) -> tuple[float, ...]:
        if list(drops) != sorted(set(drops)):
            raise ValueError(f"drops: each must be above the one before it, got {drops}")
        return drops

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> TrainingConfig:
        if self.nesterov and not self.momentum:
            raise ValueError(
                "nesterov needs a momentum above 0, got momentum 0; set training.momentum, or "
                "training.nesterov to false"
            )
        return self
