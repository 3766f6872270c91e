"""Whole runs on tiny targets: they learn, go on where they stopped, and give a draft that can be served."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from engine.draft.files import fingerprint, load_draft, read_tensors
from tests.training.targets import recitals, reciting_target
from training.errors import TrainingError
from training.journal import read_log
from training.run import train
from training.settings import TrainSettings
from training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reciting_target(tmp_path_factory.mktemp("reciting"))


def settings(model: Path, data: Path, out: Path, **changes: Any) -> TrainSettings:
    base: dict[str, Any] = {
        "model": str(model),
        "data": [data],
        "out": out,
        "batch_size": 8,
        "row_length": 128,
        "lr": 3e-3,
        "mixed_precision": "no",
        "device": "cpu",
        "workers": 0,
        "log_every": 1,
    }
    return TrainSettings(**base | changes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """float32, as trained (a draft folder holds float16)."""
    state: dict[str, torch.Tensor] = torch.load(out / "checkpoint.pt", weights_only=True)["draft"]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 0.0) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], rtol=0.0, atol=atol) for name in one)


def stop_after(steps: int) -> Callable[[], bool]:
    asked: Iterator[int] = count(1)
    return lambda: next(asked) >= steps


def test_a_draft_learns_and_is_published(reciting: Path, tmp_path: Path) -> None:
    data, held_out = recitals(tmp_path / "a.jsonl", 32), recitals(tmp_path / "b.jsonl", 8, start=100)
    chosen = settings(
        reciting,
        data,
        tmp_path / "out",
        eval_data=[held_out],
        epochs=12,
        unroll=2,
        draft_vocab=40,
        schedule="cosine",
        eval_every=24,
    )
    folder = train(chosen)
    log = read_log(tmp_path / "out" / "log.jsonl")
    losses = [line["loss"] for line in log if line["kind"] == "step"]
    lengths = [line["acceptance_length"] for line in log if line["kind"] == "evaluation"]
    assert len(losses) == 48
    assert losses[-1] < 0.3 * losses[0]
    assert len(lengths) == 3
    assert lengths[0] < 1.3
    assert lengths[-1] > 3.0

    text_config = AutoConfig.from_pretrained(reciting)
    loaded = load_draft(folder, text_config, attn_implementation="sdpa")
    vocabulary = loaded.vocabulary
    assert loaded.config.target_fingerprint == fingerprint(reciting)
    assert vocabulary is not None
    assert len(vocabulary) == 40
    assert text_config.eos_token_id in vocabulary.tolist()
    trained = weights(tmp_path / "out")
    assert same({n: v.float() for n, v in loaded.module.state_dict().items()}, trained, atol=2e-3)  # float16
    card = (folder / "README.md").read_text()
    assert '| files | ["a.jsonl"] |' in card
    assert f"| {lengths[-1]:.2f} |" in card
    assert "held-out acceptance length" in (folder / "curve.svg").read_text()


@pytest.mark.parametrize("feature_cache_gb", [0.0, 0.1])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    feature_cache_gb: float, tiny: Callable[..., Path], dialogues: Any, tmp_path: Path
) -> None:
    """Over an epoch's end, with everything that draws random numbers, and after a kill that lost steps."""
    data, model = dialogues(10, pictures=True), tiny("llava")
    changes: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 4,
        "noise": 0.1,
        "unroll": 2,
        "tokens_per_pass": 160,
        "schedule": "linear",
        "warmup_steps": 2,
        "draft_vocab": 100,
        "eval_data": [data],
        "eval_every": 3,
        "init_from_target": True,
        "feature_cache_gb": feature_cache_gb,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(settings(model, data, whole, **changes))
    for steps in (2, 3):
        train(settings(model, data, parts, **changes), stop=stop_after(steps))
    kept = (parts / "checkpoint.pt").read_bytes()
    train(settings(model, data, parts, **changes), stop=stop_after(2))
    (parts / "checkpoint.pt").write_bytes(
        kept
    )  # killed after these steps were logged, before they were saved
    with open(parts / "log.jsonl", "a") as log:
        log.write('{"kind": "st')
    train(settings(model, data, parts, **changes))
    assert same(weights(parts), weights(whole))

    def told(out: Path) -> list[dict[str, Any]]:
        timings = ("seconds", "tokens_per_second")
        lines = [{k: v for k, v in line.items() if k not in timings} for line in read_log(out / "log.jsonl")]
        return [line for line in lines if line["kind"] == "step" or line["step"] % 3 == 0]

    assert told(parts) == told(whole)
    assert [line["step"] for line in told(whole) if line["kind"] == "step"] == list(range(1, 10))


def test_it_does_not_matter_how_a_batch_is_cut(
    tiny: Callable[..., Path], dialogues: Any, tmp_path: Path
) -> None:
    data, model = dialogues(8, pictures=True), tiny("llava")
    cuts = [(512, 4096), (64, 4096), (512, 64)]  # few long rows, many short ones, a pass for each
    outs = [tmp_path / str(i) for i in range(len(cuts))]
    for out, (row, tokens) in zip(outs, cuts, strict=True):
        train(settings(model, data, out, row_length=row, tokens_per_pass=tokens, epochs=2, unroll=2, lr=1e-4))
    first = weights(outs[0])
    assert all(same(weights(out), first, atol=2e-6) for out in outs[1:])
    assert not same(first, weights_at_start(model, data, tmp_path / "start"), atol=1e-5)


def weights_at_start(model: Path, data: Path, out: Path) -> dict[str, torch.Tensor]:
    train(settings(model, data, out, max_steps=1, lr=1e-30))
    return weights(out)


SHARED: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "tokens_per_pass": 100,
    "unroll": 2,
    "noise": 0.1,
    "lr": 1e-4,
    "eval_every": 100,
}
RUN = """
import sys
from pathlib import Path
from tests.training.test_training import SHARED, settings
from training.run import train
model, data, out = map(Path, sys.argv[1:])
train(settings(model, data, out, eval_data=[data], **SHARED))
"""


def test_two_processes_do_what_one_does(tiny: Callable[..., Path], dialogues: Any, tmp_path: Path) -> None:
    """gloo, started with the variables that ``accelerate launch`` and ``torchrun`` set."""
    data, model = dialogues(9, pictures=True), tiny("llava")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int) -> subprocess.Popen[bytes]:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        environment = os.environ | {name: str(value) for name, value in own.items()}
        command = [sys.executable, "-c", RUN, str(model), str(data), str(tmp_path / "two")]
        return subprocess.Popen(command, cwd=ROOT, env=environment)

    started = [start(0), start(1)]
    train(settings(model, data, tmp_path / "one", eval_data=[data], **SHARED))
    assert [process.wait() for process in started] == [0, 0]
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=2e-6)
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for other, line in zip(two, one, strict=True):
        for name in ("loss", "agreement", "acceptance_length", "rounds", "tokens"):
            assert other.get(name) == (pytest.approx(line[name], rel=1e-3) if name in line else None)


def test_other_settings_do_not_go_on_with_a_checkpoint(reciting: Path, tmp_path: Path) -> None:
    data, out = recitals(tmp_path / "a.jsonl", 8), tmp_path / "out"
    train(settings(reciting, data, out))
    with pytest.raises(TrainingError, match=r"lr was 0\.003, is 0\.1.*--no-resume"):
        train(settings(reciting, data, out, lr=0.1))
    recitals(data, 9)
    with pytest.raises(TrainingError, match="data was"):
        train(settings(reciting, data, out))
    begun = settings(reciting, data, out, lr=0.1, resume=False, eval_data=[data])
    train(begun)
    train(begun)
    lines = read_log(out / "log.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [0, 2], "one run's alone"


def test_a_run_that_begins_again_does_not_go_on_with_the_old_checkpoint(
    reciting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where it was killed before it had one of its own."""
    data, out = recitals(tmp_path / "a.jsonl", 8), tmp_path / "out"
    train(settings(reciting, data, out))

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.trainer.Trainer.step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(settings(reciting, data, out, resume=False))
    assert not (out / "checkpoint.pt").exists()


def test_a_folder_that_is_no_draft_is_not_replaced(reciting: Path, tmp_path: Path) -> None:
    data = recitals(tmp_path / "a.jsonl", 8)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("")
    with pytest.raises(TrainingError, match="not a draft"):
        train(settings(reciting, data, tmp_path / "out", publish=mine))
    assert (mine / "thesis.txt").exists()
    train(settings(reciting, data, tmp_path / "out", publish=tmp_path / "draft"))
    before = read_tensors(tmp_path / "draft" / "model.safetensors")
    train(settings(reciting, data, tmp_path / "out", publish=tmp_path / "draft", resume=False, seed=2))
    assert not same(before, read_tensors(tmp_path / "draft" / "model.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "draft", "mine", "out"]


def test_what_is_left_out_is_counted(reciting: Path, tmp_path: Path) -> None:
    data = recitals(tmp_path / "a.jsonl", 6)
    long = {"messages": [{"role": "user", "content": "x " * 200}, {"role": "assistant", "content": "y"}]}
    mute = {"messages": [{"role": "user", "content": "x"}]}
    with open(data, "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in (long, mute, mute))
    train(settings(reciting, data, tmp_path / "out", max_length=100))
    card = (tmp_path / "out" / "draft" / "README.md").read_text()
    assert "| examples | 6 |" in card
    assert "| left_out_too_long | 1 |" in card
    assert "| left_out_without_answer | 2 |" in card
    data.write_text(json.dumps(mute))
    with pytest.raises(TrainingError, match=r"none of the 1 dialogues can be used.* 1 have no answer"):
        train(settings(reciting, data, tmp_path / "other"))


def test_a_gradient_that_is_no_number_ends_the_run_and_spoils_nothing(
    reciting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = recitals(tmp_path / "a.jsonl", 24), tmp_path / "out"
    chosen = settings(reciting, data, out, publish=tmp_path / "draft", save_seconds=0.0)
    real = Trainer.step

    def spoiled(trainer: Trainer, number: int, *args: Any, **more: Any) -> Any:
        if number == 1:
            torch.nn.utils.vector_to_parameters(
                torch.full((sum(p.numel() for p in trainer.draft.parameters()),), float("inf")),
                trainer.draft.parameters(),
            )
        return real(trainer, number, *args, **more)

    monkeypatch.setattr(Trainer, "step", spoiled)
    with pytest.raises(TrainingError, match=r"step 2: the gradient norm is (inf|nan),.*--lr"):
        train(chosen)
    assert all(tensor.isfinite().all() for tensor in weights(out).values())
    assert not (tmp_path / "draft").exists()


def test_a_draft_that_cannot_be_replaced_stays(
    reciting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, draft = recitals(tmp_path / "a.jsonl", 8), tmp_path / "draft"
    train(settings(reciting, data, tmp_path / "out", publish=draft))
    before, real = read_tensors(draft / "model.safetensors"), os.rename

    def refusing(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(OSError, match="no"):
        train(settings(reciting, data, tmp_path / "out", publish=draft, resume=False, seed=2))
    assert same(before, read_tensors(draft / "model.safetensors"))
