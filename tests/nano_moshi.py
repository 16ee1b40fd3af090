"""A Moshi of nothing: the demo's Mimi with a random decoder, a random language model, a tokenizer of a few words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LM = {
    "dim": 32,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": 64,
    "num_heads": 2,
    "num_layers": 2,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 100,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 32,
    "depformer_dim_feedforward": 64,
    "depformer_num_heads": 2,
    "depformer_num_layers": 1,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0] + 8 * [0, 1],
}
#: Moshi's own warm-up asks for a GPU, where there may be none; its tokens go to a file to compare.
LAUNCH = """
import sys, json, torch
if not torch.cuda.is_available():
    torch.cuda.synchronize = lambda: None
torch.set_num_threads(1)
from moshi.models import LMGen
step, out = LMGen.step, open(sys.argv[1], "w")
def told(self, *a, **k):
    tokens = step(self, *a, **k)
    print(json.dumps(None if tokens is None else tokens.flatten().tolist()), file=out, flush=True)
    return tokens
LMGen.step = told
{more}
arguments = sys.argv[3:]
if sys.argv[2] == "tapped":
    from cli.whowhen import app
    sys.argv = ["whowhen", "moshi", "--port", "0", "--", *arguments]
    app()
else:
    import runpy
    sys.argv = ["moshi.server", *arguments]
    runpy.run_module("moshi.server", run_name="__main__", alter_sys=True)
"""


def write(folder: Path) -> list[str]:
    """Write its files; the arguments that moshi.server takes for them."""
    import sentencepiece
    import torch
    from moshi.models import loaders
    from safetensors.torch import save_file

    from featstore.extractors import sources
    from featstore.extractors.mimi import MIMI_NANO, build_mimi
    from featstore.extractors.weights import read_safetensors

    source = sources.resolve("demo", file="", demo="mimi-nano.safetensors", suffixes=(".safetensors",))
    assert source.path is not None
    torch.manual_seed(0)
    mimi = build_mimi(MIMI_NANO)
    for name, tensor in mimi.state_dict().items():  # quantisers begin at zero, and then all codes are one
        if "embedding" in name or "cluster_usage" in name:
            tensor.copy_(torch.randn_like(tensor).abs() + 0.5 if "usage" in name else torch.randn_like(tensor))
    state, _ = read_safetensors(source.path)
    mimi.load_state_dict(state, strict=False)
    save_file({k: v.contiguous() for k, v in mimi.state_dict().items()}, folder / "mimi.safetensors")
    (folder / "mimi.json").write_text(json.dumps(MIMI_NANO))
    words = folder / "words.txt"
    words.write_text("\n".join("who spoke when and what did they say to whom in which room".split() * 40))
    sentencepiece.SentencePieceTrainer.train(
        input=str(words), model_prefix=str(folder / "words"), vocab_size=40, minloglevel=3, hard_vocab_limit=False
    )
    lm_config = LM | {"text_card": sentencepiece.SentencePieceProcessor(str(folder / "words.model")).vocab_size()}
    lm = loaders.get_moshi_lm(None, lm_config, dtype=torch.float32)
    save_file({k: v.contiguous() for k, v in lm.state_dict().items()}, folder / "lm.safetensors")
    config = {**lm_config, "mimi_config_name": f"file://{folder / 'mimi.json'}", "model_type": "moshi"}
    (folder / "config.json").write_text(json.dumps(config))
    files = {"moshi-weight": "lm.safetensors", "mimi-weight": "mimi.safetensors", "tokenizer": "words.model"}
    arguments = [part for name, file in files.items() for part in (f"--{name}", f"file://{folder / file}")]
    return [*arguments, "--config-path", str(folder / "config.json"), "--device", "cpu", "--static", "none"]


def launch(tokens: Path, kind: str, arguments: list[str], more: str = "") -> list[str]:
    """The command of a process with ``plain`` or ``tapped`` moshi.server."""
    return [sys.executable, "-c", LAUNCH.replace("{more}", more), str(tokens), kind, *arguments]
