"""Roles: what a linear layer does inside a transformer block, so that a rule can name it in every model."""

import re

_STREAMS = {
    "attn": "self or joint attention",
    "cross": "cross-attention",
    "add": "the second stream (text or image) that an attention layer projects on its own",
}
_PARTS = {
    "q": "queries",
    "k": "keys",
    "v": "values",
    "qkv": "queries, keys and values at once",
    "kv": "keys and values at once",
    "out": "output projection",
}
ROLES: dict[str, str] = {
    f"{s}_{p}": f"{part} of {stream}" for s, stream in _STREAMS.items() for p, part in _PARTS.items()
}
ROLES |= {
    "ffn_up": "feed-forward, into the hidden width (gates too)",
    "ffn_down": "feed-forward, out of the hidden width",
    "ffn_context_up": "feed-forward of the text stream, into the hidden width",
    "ffn_context_down": "feed-forward of the text stream, out of the hidden width",
    "single_in": "queries, keys, values and feed-forward of a parallel block at once",
    "single_out": "output of a parallel block: attention and feed-forward joined",
    "modulation": "adaptive norm: shifts, scales and gates from one vector a sample",
    "embedding": "embedder of timestep or class inside a block: one vector a sample",
    "router": "choice of experts in a mixture",
    "linear": "a linear layer whose name says nothing",
}

_MODULATION = re.compile(r"(\w+_)?(mod|modulation|ada_?ln|adanorm|norm)\d*(_\w+)?")
_EMBEDDING = re.compile(r"\w*embed\w*|(\w+_)?emb(_\w+)?|(\w+_)?(time|timestep)_(proj|mlp)")
_ATTENTION = re.compile(r"(\w*_)?(self_?)?(x?attn|attention|msa|mha)\w*")
_CROSS = re.compile(r"\w*cross\w*|attn2|(encoder|context)_attn")
_SECOND = re.compile(r"(\w+_)?(txt|text|context|encoder|added|add)(_\w+)?")
_FFN = re.compile(r"(\w+_)?(mlp|ffn?|feed_?forward|ffw|moe|experts?|net|transition|densereludense)\d*(_\w+)?")
_FFN_LEAF = re.compile(r"(fc|w|lin|linear)_?[123]|(up|down|gate|gate_up)_proj|ff_proj|linear_(in|out)")
_ROUTER = re.compile(r"(\w+_)?router(_\w+)?")
_TOKENS = {"query": "q", "key": "k", "value": "v", "output": "out", "o": "out"} | {p: p for p in _PARTS}
_TOKENS |= {f"w{token}": part for token, part in list(_TOKENS.items()) if len(token) <= 3}


def guess_role(name: str, in_features: int, out_features: int) -> str:
    """Guess the role of a linear layer from its name within its block and, for feed-forwards, its shape."""
    parts = [p for p in name.lower().split(".") if not p.isdigit()]
    leaf = parts[-1] if parts else ""
    if any(_ROUTER.fullmatch(p) for p in parts):
        return "router"
    if any(_EMBEDDING.fullmatch(p) for p in parts):
        return "embedding"
    if any(_MODULATION.fullmatch(p) for p in parts):
        return "modulation"
    tokens = leaf.split("_")
    part = next((_TOKENS[t] for t in tokens if t in _TOKENS), None)
    if part == "qkv" and "mlp" in tokens:
        return "single_in"
    if part not in (None, "out"):
        return f"{_stream(parts)}_{part}"
    if any(_FFN.fullmatch(p) for p in parts) or _FFN_LEAF.fullmatch(leaf):
        return _feed_forward(parts, in_features, out_features)
    attends = any(_ATTENTION.fullmatch(p) or _CROSS.fullmatch(p) for p in parts[:-1])
    if in_features > out_features and part == "out" and (not attends or in_features >= 3 * out_features):
        return "single_out"
    if leaf == "in_proj" and attends:
        return f"{_stream(parts)}_qkv"
    if leaf == "to_out" or (attends and (part == "out" or leaf == "proj" or leaf.endswith("attn_proj"))):
        return f"{_stream(parts)}_out"
    return "linear"


def _stream(parts: list[str]) -> str:
    if _SECOND.fullmatch(parts[-1]):
        return "add"
    if any(_CROSS.fullmatch(p) for p in parts):
        return "cross"
    return "add" if any(_SECOND.fullmatch(p) for p in parts) else "attn"


def _feed_forward(parts: list[str], in_features: int, out_features: int) -> str:
    stream = "ffn_context" if any(_SECOND.fullmatch(p) for p in parts) else "ffn"
    down = in_features > out_features or (in_features == out_features and re.search(r"2|down|out", parts[-1]))
    return f"{stream}_{'down' if down else 'up'}"
