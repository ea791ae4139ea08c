"""The text encoder of `video-shapes`, and cross-attention to prompts that are filled up with zeros."""

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from training import descend, learning_rate, progress
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel
from video_vae import TRAINING

from ditquant.evaluation.moving_shapes import CLIPS, COLOURS, DIRECTIONS, SHAPES, Clip, caption

TEXT_WIDTH = 128
TEXT_TOKENS = 512  # WanPipeline fills every prompt up to so many with zeros


def make_tokenizer() -> T5Tokenizer:
    """Whole words of the captions, and letters for whatever else a user types."""
    words = {word for clip in CLIPS for word in caption(clip).split()}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,-'!?")
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab += [("▁" + word, -1.0) for word in sorted(words)]
    vocab += [(c, -8.0) for c in letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=TEXT_TOKENS)


def make_text_encoder(tokenizer: T5Tokenizer) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=8 * math.ceil(len(tokenizer) / 8),
        d_model=TEXT_WIDTH,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return UMT5EncoderModel(config)


class ClipReader(torch.nn.Module):
    """Heads that read shape, colour, direction and ground from the text encoder's output."""

    def __init__(self):
        super().__init__()
        kinds = (len(SHAPES), len(COLOURS), len(DIRECTIONS), len(COLOURS))
        self.queries = torch.nn.Parameter(torch.randn(len(kinds), TEXT_WIDTH))
        self.attention = torch.nn.MultiheadAttention(TEXT_WIDTH, 4, batch_first=True)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(TEXT_WIDTH, n) for n in kinds)

    def forward(self, text: torch.Tensor) -> list[torch.Tensor]:
        seen = self.attention(self.queries.expand(len(text), -1, -1), text, text, need_weights=False)[0]
        return [head(x) for head, x in zip(self.heads, seen.unbind(1), strict=True)]


def clip_labels(clip: Clip) -> list[int]:
    words = (SHAPES, list(COLOURS), list(DIRECTIONS), list(COLOURS))
    values = (clip.shape, clip.colour, clip.direction, clip.ground)
    return [w.index(v) for w, v in zip(words, values, strict=True)]


def train_text_encoder(work: Path, tokenizer: T5Tokenizer, steps: int, device: str, seed: int) -> UMT5EncoderModel:
    """Teach the encoder to make every word tell its part: cross-attention in Wan knows no positions of words."""
    if (work / "text_encoder").exists():
        return UMT5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float32).to(device)
    torch.manual_seed(seed)
    encoder, reader = make_text_encoder(tokenizer).to(device), ClipReader().to(device)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    start = (0, time.time())
    for step in range(steps):
        rng = np.random.default_rng((seed, 3, step))
        clips = [TRAINING[i] for i in rng.integers(0, len(TRAINING), 96)]
        ids = tokenizer([caption(clip) for clip in clips], return_tensors="pt").input_ids.to(device)
        labels = torch.tensor([clip_labels(clip) for clip in clips], device=device)
        found = reader(encoder(ids).last_hidden_state)
        loss = sum(F.cross_entropy(f, labels[:, i]) for i, f in enumerate(found))
        loss.backward()
        descend(optimizer, learning_rate(step, steps, 2e-3))
        if step % 50 == 49:
            right = torch.stack([f.argmax(1) == labels[:, i] for i, f in enumerate(found)], 1).all(1)
            progress("text encoder", step + 1, steps, start, loss=loss.item(), read=right.float().mean().item())
    encoder.save_pretrained(work / "text_encoder")
    return encoder


@torch.no_grad()
def encode_texts(tokenizer: T5Tokenizer, encoder: UMT5EncoderModel, texts: list[str]) -> torch.Tensor:
    """Return [texts, L, TEXT_WIDTH]; what is beyond a text is zero, and the last place always is."""
    rows = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids.to(encoder.device)
        rows.append(encoder(ids).last_hidden_state[0])
    return F.pad(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), (0, 0, 0, 1))


class FilledText:
    """Cross-attention as if the last token, a zero, stood there until TEXT_TOKENS: exact, at the cost of one."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, rotary_emb=None):
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(encoder_hidden_states))
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, attn.to_v(encoder_hidden_states)))
        times = torch.zeros(k.shape[2], device=q.device, dtype=q.dtype)
        times[-1] = math.log(TEXT_TOKENS - k.shape[2] + 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=times.expand(1, 1, q.shape[2], -1))
        return attn.to_out[0](x.transpose(1, 2).flatten(2))
