"""The tracking room: the run folder is the truth, MLflow a projection of it.

`run_folder` and `events` write; `view` reads a run folder as runs, parameters and metrics;
`mlflow_projection` and `live` bring those to MLflow, and can be repeated at any time.
"""
