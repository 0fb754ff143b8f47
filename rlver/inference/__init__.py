"""How a local model samples replies: chat template, KV cache, decoding steps and engines."""
