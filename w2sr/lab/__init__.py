"""The lab: a small verifiable task and the tiny models that show the weak-to-strong effect on two CPU cores.

`task` writes the texts, `tokenizer` encodes them, `recipe` says how each model is made, `build` makes it, `measure` scores it
and `models` finds the shipped one. Only `tokenizer`, `build` and `measure` need torch or transformers; they import them inside
their functions.
"""
