"""The lab: a small verifiable task and the tiny models that show the weak-to-strong effect on two CPU cores.

`task` writes the texts, `tokenizer` encodes them, `recipe` says how each model is made, `build` makes it and `models` finds
the shipped one. Only `tokenizer` and `build` need torch or transformers, and they import them inside their functions.
"""
