"""Training: a run in a folder, which can be killed at any moment and continued.

A run's folder holds

    last.safetensors      weights, optimiser, scheduler, order, random state: where the run continues
    best.safetensors      the model with the best validation rsum, as `caan.checkpoint.load_model` reads it
    vocabulary.json       its words, in SCAN's format
    metrics.csv           a row every 20 steps, and one an epoch: validation, norms of the gradients
    events.out.tfevents.* the same for TensorBoard

A run that was killed and continued ends, on the CPU, with the same weights, bit for bit, as one that never was.

Several processes share each batch: each encodes its pairs, scores its images with the captions of all, and all have the loss of the
whole matrix, so that negatives come from the whole batch and gradients are those of one process.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from . import checkpoint
from .data import Captions, OwnPairs, PairBatch, Pairs, ShuffledBatches, Split, channel_statistics, make_loader
from .evaluation import evaluate
from .files import check_writable, locked, make_folder
from .isolation import isolated
from .loss import CollapseWatch, collapsed_loss, triplet_loss
from .metrics import Metrics, gradient_row, place_of_validation, summary, validation_row
from .model import CAAN, Encoded, ModelConfig
from .presets import TrainingConfig
from .processes import Processes
from .progress import bar
from .recall import Figures
from .same_run import check_same_run
from .signals import StopRequests
from .text import normalised
from .vocabulary import Vocabulary

# A row of metrics.csv, from one count of steps to the next.
_ROW_STEPS = 20
_COLLAPSE_ADVICE = (
    "the loss is stuck where all scores are the same (collapse). What helps: a longer warm-up (--warmup-epochs), a lower "
    "learning rate or a ramp (--learning-rate, --ramp-steps), features of like scale in all channels (--standardize)"
)


class Trainer:
    """One run.

    Args:
        folder: of the run; made where it is missing, continued where it holds `last.safetensors`.
        train, validation: the splits; of validation, no more than the first `config.validation_images` are used.
        vocabulary: of the captions.
        model_config, config: what is trained, and how.
        device: where.
        workers: processes that read batches; 0 reads in this one.
        save_seconds: how often, beside every epoch's end, `last.safetensors` is written.
        processes: those that share each batch; all must see the folder and the data. None: this one alone.
        backbone: {"backbone": name, "size": pixels or None}, what made the features, to be kept with the best model; None where
            it is not known.
        say: takes what is to be told beside the progress bar.

    Raises:
        OtherRunError: the folder holds a run with other settings.
        ValueError: it holds a run of other data or another vocabulary, the processes differ, or there are too few captions.
        FormatError: the folder's checkpoint cannot be used.
    """

    @isolated(gradients=True)
    def __init__(
        self,
        folder: str | Path,
        train: Split,
        validation: Split,
        vocabulary: Vocabulary,
        model_config: ModelConfig,
        config: TrainingConfig,
        *,
        device: torch.device | str = "cpu",
        workers: int = 0,
        save_seconds: float = 300.0,
        processes: Processes | None = None,
        backbone: dict[str, Any] | None = None,
        say: Callable[[str], None] = tqdm.write,
    ):
        self.processes = processes or Processes()
        if config.batch_size % self.processes.count:
            raise ValueError(f"batch_size: expected a multiple of the {self.processes.count} processes, got {config.batch_size}")
        if config.batch_size > len(train.captions):
            raise ValueError(
                f"batch_size: expected at most {len(train.captions)}, the captions of {train.name}, got {config.batch_size}"
            )
        self.folder, self.vocabulary, self.config, self._backbone = Path(folder), vocabulary, config, backbone
        self._validation_images = validation.num_images
        self.validation = validation.first(min(config.validation_images or validation.num_images, validation.num_images))
        self.device, self.workers, self.save_seconds, self.say = torch.device(device), workers, save_seconds, say
        # A whole training split is tens of gigabytes: some of its images have to stand for it each time a run continues.
        self.data = {"train": train.digest(images=64), "validation": self.validation.digest(images=64)}
        self._places = {"train": train.regions.path.parent, "validation": validation.regions.path.parent}
        # What writes checkpoints and TensorBoard's files takes no other name.
        normalised(str(self.folder), "folder")
        make_folder("folder", self.folder)
        self.last_path = self.folder / checkpoint.LAST
        if self.processes.first:
            for name in (checkpoint.LAST, checkpoint.BEST, "vocabulary.json", "metrics.csv"):
                check_writable("folder", self.folder / name)

        torch.manual_seed(config.seed)
        model = CAAN(model_config)
        self.model = model.to(self.device)
        self.average = AveragedModel(self.model, multi_avg_fn=self._move_average) if config.average else None
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True)
        pairs = Pairs(train, vocabulary)
        self.batches = ShuffledBatches(len(pairs), config.batch_size, config.seed, drop_last=True)
        share = OwnPairs(self.batches, self.processes.number, self.processes.count)
        self.loader = make_loader(pairs, share, workers, pin_memory=self.device.type == "cuda")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.watch = CollapseWatch()
        self.step, self.seconds, self.best_rsum = 0, 0.0, -1.0
        # Whether every epoch so far has had its validation.
        self.validated = True
        self.stop = StopRequests()
        self._saved_step = 0
        # Since the last row of metrics.csv, and since the epoch began.
        self.losses: list[float] = []
        self.norms: list[float] = []
        if self.last_path.exists():
            self._restore()
        else:
            self._begin(train, pairs)
        self._check_same_processes()

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; captions that fill no batch wait for another epoch's order."""
        return len(self.batches)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def validated_on(self) -> str:
        """Which images the figures of validation are of, in words."""
        return place_of_validation(self.validation.name, self.validation.num_images, self._validation_images)

    @property
    def scored_model(self) -> CAAN:
        """The model that is validated and kept: the average where there is one."""
        return self.average.module if self.average else self.model

    @isolated(gradients=True)
    def run(self) -> None:
        """Train to the end.

        Raises:
            KeyboardInterrupt: asked to stop by Ctrl-C or SIGTERM; the message says where the run continues.
            BlockingIOError: another process is at this run.
            FloatingPointError: the loss is not a number any more.
        """
        if self.step == self.total_steps and self.validated:
            return
        try:
            with ExitStack() as stack:
                stack.enter_context(self.stop.heard())
                watch = stack.enter_context(bar(total=self.total_steps, initial=self.step, unit="step", shown=self.processes.first))
                metrics = None
                if self.processes.first:
                    stack.enter_context(locked(self.folder, "a run"))
                    self.vocabulary.save(self.folder / "vocabulary.json")
                    writer = stack.enter_context(SummaryWriter(str(self.folder), purge_step=self.step + 1))
                    metrics = stack.enter_context(Metrics(self.folder / "metrics.csv", self.step, self.validated, writer))
                if not self.validated:
                    self._end_epoch(metrics, self.seconds - time.monotonic())
                while self.step < self.total_steps:
                    self._epoch(watch, metrics)
        except KeyboardInterrupt:
            kept = f"the run was saved after step {self._saved_step}" if self._saved_step else "nothing was saved yet"
            raise KeyboardInterrupt(f"stopped; {kept}, and the same command continues from there") from None

    def _epoch(self, watch: tqdm, metrics: Metrics | None) -> None:
        """The rest of an epoch, and its validation."""
        config = self.config
        self.model.train()
        pending: list[tuple[torch.Tensor, torch.Tensor, float]] = []
        started = saved = logged = time.monotonic()
        before, steps = self.seconds, 0
        for batch in self.loader:
            warming_up = self.step < config.warmup_epochs * self.steps_per_epoch
            form = config.warmup_form if warming_up else "hardest"
            images = torch.cat(self.processes.gather(batch.images.images))
            loss, norm = self._train_step(batch.to(self.device), images, form)
            self.batches.advance()
            self.step += 1
            steps += 1
            watch.update()
            pending.append((loss, norm, collapsed_loss(images, config.margin, form)))
            stops = self.processes.any(self.stop.requested)
            now = time.monotonic()
            ends_epoch = self.batches.batch == 0
            logs = ends_epoch or self.step % _ROW_STEPS == 0
            # An epoch's validation may last, and what stops it must not cost the epoch.
            saves = ends_epoch or stops or now - saved > self.save_seconds
            if logs or saves:
                self.seconds = before + now - started
                self._take(pending)
            if logs:
                self._log(steps * config.batch_size**2 / (now - logged), metrics, watch)
                steps, logged = 0, now
            if saves:
                self.validated = not ends_epoch
                if stops:
                    self.stop.follow()
                self._save()
                saved = now
                if stops:
                    raise KeyboardInterrupt
            if ends_epoch:
                break
        self._end_epoch(metrics, before - started)

    def _end_epoch(self, metrics: Metrics | None, origin: float) -> None:
        """Validate, and write what is to be written, which the first process does.

        Args:
            origin: when the run would have begun, had it not been stopped.
        """
        config = self.config
        with self.stop.at_once():
            figures = self.validate()
        self.seconds = time.monotonic() + origin
        better, self.best_rsum = figures.rsum > self.best_rsum, max(figures.rsum, self.best_rsum)
        gradients = gradient_row(self.norms, config.clip_norm)
        self.norms.clear()
        if metrics:
            images = self.validation.num_images, self._validation_images
            metrics.add(self._place(), validation_row(figures, *images) | gradients)
            self.say(
                f"epoch {self.step // self.steps_per_epoch} of {config.epochs}: {self.seconds:,.0f} s so far, "
                f"validation on {self.validated_on}: {summary(figures)}; "
                f"gradient norm {gradients['gradient_norm_median']:.3g} (median), "
                f"{gradients['gradient_norm_max']:.3g} (largest), {gradients['clipped_share']:.0%} of steps clipped"
            )
            if better:
                facts = {**self._place(), "validation": asdict(figures), "training": asdict(config)}
                facts |= {"validated_on": self.validated_on, "backbone": self._backbone}
                checkpoint.save_model(self.folder / checkpoint.BEST, self.scored_model, self.vocabulary, facts)
        self.validated = True
        self._save()

    def _train_step(self, batch: PairBatch, images: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor]:
        """One step; the loss and the gradient's norm, still on the device.

        Args:
            batch: this process's pairs.
            images: (B,), of the pairs of all processes.
            form: of the loss.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        if self.processes.count > 1:
            # One process goes on with the random state that its checkpoint has; several need one each, and keep none.
            torch.manual_seed(
                int(np.random.SeedSequence((self.config.seed, self.step, self.processes.number)).generate_state(1)[0])
            )
        precision = getattr(torch, self.config.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            regions = self.model.encode_images(batch.images)
            words = self._gather_words(self.model.encode_captions(batch.captions))
            scores = self.model.attention(regions, words)
        # All have the same loss of the same matrix, and so the whole of its derivatives.
        scores = self.processes.gather_rows(scores, summed=False)
        loss = triplet_loss(scores, images, self.config.margin, form)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self._sum_gradients()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update_parameters(self.model)
        return loss.detach(), norm

    def _move_average(self, averaged: list[torch.Tensor], current: list[torch.Tensor], _: torch.Tensor) -> None:
        """Move the average to the weights of one more step; it reaches back over a third of the steps so far at most.

        With the decay alone, the average of a short run would be made of its initial weights.
        """
        get_ema_multi_avg_fn(min(self.config.average, self.step / (self.step + 3)))(averaged, current, None)

    def _gather_words(self, words: Encoded) -> Encoded:
        """The captions of all processes; each of them has the derivatives of its own rows of scores."""
        if self.processes.count == 1:
            return words
        lengths = torch.cat(self.processes.gather(words.lengths))
        features = nn.functional.pad(words.features, (0, 0, 0, int(lengths.max()) - words.features.shape[1]))
        return Encoded(self.processes.gather_rows(features, summed=True), lengths)

    def _sum_gradients(self) -> None:
        """Over the processes, each of which has the derivatives by way of its images, its captions and its rows of scores."""
        if self.processes.count == 1:
            return
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        total = self.processes.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, total.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def validate(self) -> Figures:
        """Figures of the images that `validated_on` names."""
        models = [(self.scored_model, self.vocabulary)]
        return evaluate(
            models,
            self.validation,
            processes=self.processes,
            device=self.device,
            workers=self.workers,
            progress=True,
            # Words that the vocabulary lacks have been told when the run began.
            say=lambda line: None,
        ).figures

    def _learning_rate(self) -> float:
        """Of the next step."""
        config = self.config
        ramp = min(1.0, (self.step + 1) / config.ramp_steps) if config.ramp_steps else 1.0
        decays = sum(self.step >= round(epoch * self.steps_per_epoch) for epoch in config.decay_epochs)
        return config.learning_rate * ramp * config.decay_factor**decays

    def _place(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.step / self.steps_per_epoch, "seconds": self.seconds}

    def _take(self, pending: list[tuple[torch.Tensor, torch.Tensor, float]]) -> None:
        """Take the losses and norms of some steps off the device, all at once."""
        losses, norms = (torch.stack(values).tolist() for values in list(zip(*pending, strict=True))[:2])
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), self.step - len(losses) + 1):
            # The scaler of float16 leaves out steps whose gradient is not finite, and goes on.
            if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
                what = f"the loss is {loss}" if math.isfinite(norm) else f"the loss is {loss}, the norm of its gradient {norm},"
                raise FloatingPointError(
                    f"{what} in step {step}; {self.last_path} is from an earlier step. What helps: a lower learning "
                    f"rate (--learning-rate), --precision fp32, features of like scale in all channels (--standardize)"
                )
        for loss, (_, _, collapsed) in zip(losses, pending, strict=True):
            if self.watch.update(loss, collapsed) and self.processes.first:
                self.say(f"step {self.step}: {_COLLAPSE_ADVICE}")
        self.losses += losses
        self.norms += norms
        pending.clear()

    def _log(self, rate: float, metrics: Metrics | None, watch: tqdm) -> None:
        """A row of the steps since the last one."""
        mean = sum(self.losses) / len(self.losses)
        self.losses.clear()
        if metrics:
            watch.set_postfix_str(f"loss {mean:.2f}, {rate:,.0f} pairs/s")
            rate_now = self.optimizer.param_groups[0]["lr"]
            row = {"loss": mean, "learning_rate": rate_now, "gradient_norm": self.norms[-1], "pairs_per_second": rate}
            metrics.add(self._place(), row)

    def _save(self) -> None:
        """Write the state, which the first process does for all."""
        if self.processes.first:
            self._write_state()
        self._saved_step = self.step

    def _write_state(self) -> None:
        state = self.optimizer.state_dict()
        tensors = checkpoint.prefixed("model", self.model.state_dict())
        if self.average:
            tensors |= checkpoint.prefixed("average", self.average.state_dict())
        for index, values in state["state"].items():
            tensors |= checkpoint.prefixed(f"optimizer.{index}", values)
        tensors["metrics.losses"] = torch.tensor(self.losses, dtype=torch.float64, device="cpu")
        tensors["metrics.norms"] = torch.tensor(self.norms, dtype=torch.float64, device="cpu")
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        facts = {
            "training": asdict(self.config),
            "data": self.data,
            "param_groups": state["param_groups"],
            "scaler": self.scaler.state_dict(),
            "batches": self.batches.state_dict(),
            "place": self._place(),
            "best_rsum": self.best_rsum,
            "validated": self.validated,
            **checkpoint.model_facts(self.model, self.vocabulary),
        }
        checkpoint.write(self.last_path, tensors, facts)

    def _begin(self, train: Split, pairs: Pairs) -> None:
        """What a run that continues has had."""
        if self.processes.first:
            for warning in (pairs.captions.warning(), Captions(self.validation, self.vocabulary).warning()):
                if warning:
                    self.say(warning)
        if self.model.config.standardize:
            self.model.region_encoder.set_statistics(*channel_statistics(train))
            if self.average:
                self.average.module.load_state_dict(self.model.state_dict())

    def _restore(self) -> None:
        tensors, facts = checkpoint.read(self.last_path)
        try:
            check_same_run(self.folder, facts, self.config, self.model, self.vocabulary, self.data, self._places)
            self.batches.load_state_dict(facts["batches"])
            self.model.load_state_dict(checkpoint.unprefixed("model", tensors))
            if self.average:
                self.average.load_state_dict(checkpoint.unprefixed("average", tensors))
            indices = {name.split(".")[1] for name in tensors if name.startswith("optimizer.")}
            state = {int(index): checkpoint.unprefixed(f"optimizer.{index}", tensors) for index in indices}
            self.optimizer.load_state_dict({"state": state, "param_groups": facts["param_groups"]})
            self.scaler.load_state_dict(facts["scaler"])
            self.losses, self.norms = tensors["metrics.losses"].tolist(), tensors["metrics.norms"].tolist()
            torch.set_rng_state(tensors["random.cpu"])
            if "random.cuda" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
            self.step, self.seconds, self.best_rsum = facts["place"]["step"], facts["place"]["seconds"], facts["best_rsum"]
            self.validated, self._saved_step = facts["validated"], self.step
        except (KeyError, RuntimeError) as error:
            raise checkpoint.FormatError(
                f"{self.last_path}: expected the state of a run, found it incomplete: {type(error).__name__}: {error}"
            ) from None
        if self.step > self.total_steps:
            done = -(-self.step // self.steps_per_epoch)
            raise ValueError(
                f"epochs: expected at least the {done} that the run in {self.folder} has had, got {self.config.epochs}"
            )
        if self.processes.first:
            self.say(f"continuing {self.folder} after step {self.step} of {self.total_steps}")

    def _check_same_processes(self) -> None:
        """All must be at the same place of the same run, or their sums would mean nothing."""
        ours = {"step": self.step, "data": self.data, "weights": checkpoint.digest(self.model, self.vocabulary)}
        for number, theirs in enumerate(self.processes.gather_values(ours)):
            for name, value in theirs.items():
                if value != ours[name]:
                    raise ValueError(
                        f"{name}: expected the same in all processes, got {ours[name]} in process {self.processes.number}, {value} "
                        f"in process {number}; all must see the same run in {self.folder}, and the same data"
                    )
