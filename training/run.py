"""``train(settings)``: a whole run, from data files to a published draft. A stopped run can be resumed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from compressors.base import Whole
from engine.draft.files import draft_config, fingerprint
from training.acceptance import Acceptance, measure
from training.batches import Batch
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.compression import Choose, Compression, always, gated
from training.data import Data, open_data
from training.errors import TrainingError
from training.feature_cache import FeatureCache
from training.generate import answers_path, generate
from training.journal import LOG, Journal, read_log
from training.precision import with_precision
from training.publish import check_publishable, publish
from training.settings import TrainSettings
from training.student import Student, continued, draft_vocabulary, new_compressor, new_draft
from training.teacher import Teacher, stop_token_ids
from training.trainer import Trainer

CHECKPOINT = "checkpoint.pt"
SERVED = "auto"
# How long the other processes wait for the one that reads the data or writes the answers.
_PATIENCE = timedelta(hours=48)


def train(settings: TrainSettings, stop: Callable[[], bool] = lambda: False) -> Path:
    """Train to the last step, or until ``stop`` (called at every step) returns true.

    Returns the draft's folder. Raises ``TrainingError`` for unusable data or settings. Processes started by
    ``accelerate launch`` share the work.
    """
    check_publishable(settings.draft_folder)  # before hours of work
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--out {settings.out} cannot be created: {error.strerror}") from None
    accelerator = Accelerator(
        cpu=settings.device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)]
    )
    settings = with_precision(settings, accelerator.device)
    folder = model_folder(settings)
    if settings.generate != "off":
        settings = with_answers(settings, folder, main=accelerator.is_main_process)
        accelerator.wait_for_everyone()
    run = Run(settings, accelerator, folder)
    run.loop(stop)
    if accelerator.is_main_process:
        run.publish()
    accelerator.wait_for_everyone()
    run.clear()
    accelerator.end_training()  # otherwise the process may abort on exit
    return settings.draft_folder


def with_answers(settings: TrainSettings, folder: Path, *, main: bool = True) -> TrainSettings:
    """Return the settings with the target's own answers as data; the main process writes missing ones."""
    prompts = [*settings.data, *settings.eval_data]
    if main:
        generate(settings, folder, prompts)
    answers = {"data": settings.data, "eval_data": settings.eval_data}
    return settings.model_copy(
        update={name: [answers_path(p) for p in paths] for name, paths in answers.items()}
    )


def model_folder(settings: TrainSettings) -> Path:
    """Return the target's folder, downloading a model from the hub. Raises ``TrainingError``."""
    if Path(settings.model).is_dir():
        return Path(settings.model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(settings.model, revision=settings.revision))
    except (OSError, ValueError, HfHubHTTPError) as error:
        told = str(error).splitlines()[0]
        raise TrainingError(
            f"--model {settings.model} is not a folder and cannot be downloaded from the hub: {told}"
        ) from None


class Run:
    """The state of a run; ``done`` is its progress."""

    def __init__(self, settings: TrainSettings, accelerator: Any, folder: Path) -> None:
        self._settings, self._accelerator, self._folder = settings, accelerator, folder
        with accelerator.main_process_first():  # the others load the index that it builds
            self._data = open_data(settings, settings.data, folder, "data.index")
            held_out = (
                open_data(settings, settings.eval_data, folder, "eval.index") if settings.eval_data else None
            )
        self._teacher = Teacher.load(folder, settings.dtype, accelerator.device)
        self._student = self._first_student()
        chosen = self._student.vocabulary
        self._vocabulary = None if chosen is None else chosen.to(accelerator.device)
        plan = self._data.plan(settings)
        self._num_steps = min(settings.epochs * plan.steps_per_epoch, settings.max_steps or 2**62)
        head = self._teacher.head(self._vocabulary)
        target = {"data": self._data.index.key, "target": fingerprint(folder)}
        self._made_by = settings.of_weights() | target
        if settings.init_draft is not None:
            self._made_by["init_draft"] = fingerprint(settings.init_draft)
        self._cache = self._feature_cache(target)
        see = self._teacher.see if self._cache is None else self._cache.see
        self._compression = (
            None
            if self._student.compressor is None
            else Compression(settings, self._student.compressor, self._teacher.grids)
        )
        self.trainer = Trainer(
            settings, accelerator, see, self._student.draft, head, self._num_steps, self._compression
        )
        self.done = Progress()
        self._checkpoint = settings.out / CHECKPOINT
        if not settings.resume:  # or a kill before the first save would bring the old run back
            self._checkpoint.unlink(missing_ok=True)
        elif self._checkpoint.exists():
            self.done = load_checkpoint(
                self._checkpoint, self._student.modules(), self.trainer.optimizer, self._made_by
            )
        self._plan = plan
        self._eval_batches = [] if held_out is None else self._eval_share(held_out)

    def _first_student(self) -> Student:
        settings, text_config = self._settings, self._teacher.text_config
        knows_attention = self._teacher.knows_attention
        if settings.init_draft is not None:
            return continued(settings.init_draft, text_config, settings, knows_attention=knows_attention)
        like = self._teacher.last_layer if settings.init_from_target else None
        draft = new_draft(text_config, settings.seed, like)
        counts, picture = self._data.index.counts, self._data.encoder.processor.image_token_id
        stops = stop_token_ids(self._folder)
        vocabulary = draft_vocabulary(counts, settings.draft_vocab, stops, picture)
        compressor = new_compressor(settings, draft, knows_attention=knows_attention)
        return Student(draft, compressor, vocabulary)

    def _feature_cache(self, target: dict[str, str]) -> FeatureCache | None:
        settings = self._settings
        if settings.feature_cache_gb == 0.0:
            return None
        depends = {
            **target,
            "dtype": settings.dtype,
            "mixed_precision": settings.mixed_precision,
            "scores": self._teacher.knows_attention,
        }
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
        num_tokens = int(self._data.index.lengths.sum())
        with self._accelerator.local_main_process_first():  # the others use the files that it creates
            return FeatureCache(self._teacher, settings.out, num_tokens, key, settings.feature_cache_gb)

    def _eval_share(self, held_out: Data) -> list[Batch]:
        """Return this process's share of the held-out batches, kept in memory."""
        passes = held_out.first(self._settings.eval_size, self._settings)
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        return list(held_out.batches(passes[rank::world], self._settings.workers))

    def loop(self, stop: Callable[[], bool]) -> None:
        """Run all remaining steps."""
        settings, done = self._settings, self.done
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        journal = Journal(settings.out, done.step, self._num_steps, main=rank == 0)
        if done.step == 0:
            self._evaluate(journal)
        steps = list(self._plan.steps(done.step, self._num_steps))
        batches = self._data.batches(
            [one for passes in steps for one in passes[rank::world]], settings.workers
        )
        saved = began = time.monotonic()
        for passes in steps:
            own = islice(batches, len(passes[rank::world]))
            report = self.trainer.step(done.step, own, self._data.num_targets(passes), stop=stop())
            now = time.monotonic()
            tokens = int(sum(self._data.index.lengths[row].sum() for one in passes for row in one.rows))
            seconds, began = now - began, now
            done.step += 1
            done.tokens += tokens
            done.seconds += seconds
            speed = tokens / seconds
            journal.show(report, speed, settings.eval_steps)
            ending = report.stop or done.step == self._num_steps
            if done.step % settings.log_every == 0 or ending:
                values = {**self._where(), "tokens_per_second": round(speed), **report.describe()}
                journal.write("step", values)
            if done.step % settings.eval_every == 0 or ending:
                self._evaluate(journal)
                began = time.monotonic()
            if ending or now - saved >= settings.save_seconds:
                self._save()
                saved = began = time.monotonic()
            if report.stop:
                break
        journal.close()

    def _where(self) -> dict[str, Any]:
        done = self.done
        return {"step": done.step, "tokens": done.tokens, "seconds": round(done.seconds, 1)}

    def _evaluate(self, journal: Journal) -> None:
        if not self._settings.eval_data:
            return
        self.trainer.draft.eval()
        choices = self._choices()
        found = measure(
            self.trainer.draft,
            self._teacher,
            self._eval_batches,
            self._vocabulary,
            steps=self._settings.eval_steps,
            bf16=self._settings.mixed_precision == "bf16",
            choices=choices,
        )
        vectors = torch.tensor([one.vector() for one in found.values()], device=self._teacher.device)
        summed = self._accelerator.reduce(vectors, reduction="sum").tolist()
        named = dict(zip(choices, map(Acceptance.from_vector, summed), strict=True))
        values = named[SERVED].describe()
        if len(named) > 1:
            values["by_compressor"] = {
                name: {
                    "length": round(one.length, 4),
                    "kept": round(one.num_kept / max(1, one.num_visual), 4),
                }
                for name, one in named.items()
            }
        journal.write("evaluation", {**self._where(), **values})

    def _choices(self) -> dict[str, Choose]:
        """Return the ways to compress pictures in evaluations; the first is the default when serving."""
        compressor = self._student.compressor
        if compressor is None:
            return {SERVED: always(Whole())}
        ways = {way.tag: always(way) for way in compressor.ways}
        return {SERVED: gated(compressor), "none": always(Whole()), **ways}

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            save_checkpoint(
                self._checkpoint,
                self._student.modules(),
                self.trainer.optimizer,
                self.done,
                self._made_by,
            )

    def clear(self) -> None:
        """Remove files that only further steps would need."""
        if self._cache is not None and self.done.step == self._num_steps:
            self._cache.remove()

    def publish(self) -> None:
        """Publish the draft as it is now. Call this on the main process only."""
        settings, index = self._settings, self._data.index
        name = Path(settings.model).name if Path(settings.model).is_dir() else settings.model
        facts = {
            "Data": {"files": [path.name for path in settings.data], **index.describe()},
            "Run": {
                **self._where(),
                "planned_steps": self._num_steps,
                "processes": self._accelerator.num_processes,
                "draft_vocabulary": "all" if self._vocabulary is None else len(self._vocabulary),
            },
            "Settings": settings.of_weights(),
        }
        evaluations = [line for line in read_log(settings.out / LOG) if line["kind"] == "evaluation"]
        publish(
            settings.draft_folder,
            self.trainer.draft,
            draft_config(self._teacher.text_config, name, self._folder),
            self._vocabulary,
            self._student.compressor,
            facts,
            evaluations,
        )
