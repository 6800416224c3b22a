"""The scoring room: pure functions, arrays in and numbers out.

`classification` judges the classifier (`weighted` computes its figures), `bootstrap` makes
intervals of any figure, `binarise` makes a salient mask of an attribution map at a threshold that
`thresholds` finds, `overlap`, `boundary` and `surface` hold it against the infection mask,
`ranking` scores the map itself, `metrics` lists all localisation scores, `protocol` replays the
study's own. `paired` compares explainers, `ranks` orders them, `strata` sorts images.
"""
