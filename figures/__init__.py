"""Tables and figures: pure functions of committed rows, of the plans, or of one named model and image.

    python -m figures.tables 1                 # results/tables/table1-testbed.{md,tex,csv} from results/*.jsonl
    python -m figures.figure2                  # results/figures/figure2-testbed.{pdf,png,txt}
    python -m figures.reproduce.make all --dry-run       # what would have to be run, and its cost

A file here is a page: it draws one table or figure and registers itself under a name (figures.data.pages).  Below the
pages are data (what is drawn) and look (how); above them is reproduce, which makes what a page needs.
A new figure is its file and its test; scripts/figures/NAME.sh is the same three lines for every page.
"""
