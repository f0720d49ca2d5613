"""The paper's tables as data: complete, and every printed average follows from the cells."""

import pytest

from figures.data import paper, settings

NINE = ["gqa", "mmbench", "mmbench_cn", "mme", "pope", "sqa", "vqav2", "textvqa", "vizwiz"]


@pytest.mark.parametrize(("file", "averages"), [("table1.csv", 21), ("table2.csv", 10)])
def test_printed_averages_are_means_of_ratios(file, averages):
    table = paper.load(file)
    ours = paper.average_of_ratios(table[NINE], table.loc[0, NINE])
    assert ours[0] == 100 and table.method[0] == "none"
    assert len(ours[1:]) == averages
    assert (ours - table["avg"]).abs().max() <= 0.005 + 1e-9


def test_table_3_averages_are_plain_means():
    table = paper.load("table3.csv")
    for name, digit in (("", 0.1), ("_score", 0.01)):
        ours = paper.average_of_values(table[[f"{b}{name}" for b in ("tgif", "msvd", "msrvtt")]])
        assert (ours - table[f"avg{name}"]).abs().max() <= digit / 2 + 1e-9


def test_cells_spot_checked_by_hand():
    one, two, four = (paper.load(f"table{i}.csv").set_index(["tokens", "method"]) for i in (1, 2, 4))
    assert one.loc[(32, "visiondrop"), NINE].tolist() == [52.79, 60.31, 52.91, 1572, 77.19, 69.41, 68.55, 53.56, 52.26]
    assert one.loc[(64, "vispruner"), "textvqa"] == 55.83 and one.loc[(192, "fastv"), "mmbench_cn"] == 48.43
    assert two.loc[(320, "pyramiddrop"), NINE].tolist() == [
        57.08,
        64.46,
        56.67,
        1672,
        79.85,
        69.91,
        74.81,
        54.57,
        53.66,
    ]
    assert four.loc[(320, "visiondrop"), ["tflops", "memory_gb", "time_ms"]].tolist() == [7.70, 14.63, 216]


def test_shapes_and_no_holes():
    assert [paper.load(f"table{i}.csv").shape for i in (1, 2, 3, 4)] == [(22, 13), (11, 13), (4, 11), (4, 7)]
    assert not any(paper.load(f"table{i}.csv").isna().any().any() for i in (1, 2, 3, 4))


def test_settings_name_the_columns_of_the_paper():
    for name in ("table1", "table2", "table3"):
        variant = settings.load()[name]["paper"]
        assert {c.paper_key for c in variant.columns} <= set(variant.published.columns)
        assert variant.base.tokens in (576, 2880, 2048)
