"""The report room: tables, pictures and figures of a finished or running sweep.

`infection_map` paints single X-rays, `figures` draws what the study draws. Figures are made with
matplotlib's object interface only, so that drawing leaves no global state behind.
"""
