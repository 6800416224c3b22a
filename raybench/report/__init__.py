"""The report room: tables, pictures and figures of a finished or running sweep.

`infection_map` paints single X-rays; `figures` draws what the study draws, and hands on the larger
figures of `bars`, `classification` and `panel`. All are made with matplotlib's object interface,
so that drawing leaves no global state behind.
"""
