"""Tables and figures: pure functions of committed rows, of the plans, or of one named model and image.

    python -m figures.tables 1                 # results/tables/table1-testbed.{md,tex,csv} from results/*.jsonl
    python -m figures.figure2                  # results/figures/figure2-testbed.{pdf,png,txt}
    python -m figures.reproduce.runs table1 --dry-run    # what would have to be run, and its cost

A module named after a table or figure draws it.  Others: settings (configs/tables.yaml), cells (rows to cells), paper
(the published numbers), render (Markdown, LaTeX, CSV), style (one look), capture (what needs a model), runs (what is
missing).
"""
