"""The scoring room: pure functions, arrays in and numbers out.

`classification` judges the classifier (`weighted` computes its figures), `bootstrap` makes
intervals of any figure, `binarise` makes a salient mask of an attribution map, `overlap` and
`boundary` hold it against the infection mask, `metrics` lists the localisation metrics.
"""
