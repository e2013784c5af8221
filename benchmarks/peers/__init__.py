"""Side by side with other people's quantizers, each in an environment of its own.

`exchange` writes a folder that any environment with torch and transformers can read: the model,
the calibration samples, and which layers are meant. `quantize` and `auto_quantize` read it by
`reading`, run in the peers' environments and know nothing of bitfront; they write weights, or
plans. `compare` and `plans` call them by `calling`, and judge what they wrote with bitfront's
evaluator, beside its own.
"""
