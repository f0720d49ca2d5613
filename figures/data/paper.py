"""The paper's numbers (configs/paper/table1.csv … table4.csv, typed from its tables) and how it averages them."""

import pandas as pd

from eval.files import ROOT

FOLDER = ROOT / "configs" / "paper"


def load(file: str) -> pd.DataFrame:
    """One of the paper's tables; `method` is our name, `label` the paper's."""
    return pd.read_csv(FOLDER / file)


def average_of_ratios(values: pd.DataFrame, base: pd.Series) -> pd.Series:
    """Mean over columns of value / unpruned value, in % (Tables 1 and 2)."""
    return 100 * (values / base).mean(axis=1, skipna=False)


def average_of_values(values: pd.DataFrame) -> pd.Series:
    """Plain mean over columns (Table 3)."""
    return values.mean(axis=1, skipna=False)
