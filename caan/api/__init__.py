"""What Python programs use: a model with texts and images going in, a gallery that is searched, features of photographs.

`caan` has all of it under short names: `caan.load`, `caan.Model`, `caan.Gallery`, `caan.extract`.
"""
