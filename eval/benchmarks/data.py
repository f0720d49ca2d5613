"""Data sets before a run: are they there, do they have the columns the task reads, can the hub be reached.

lmms-eval tries a missing data set five times and then fails from deep inside; here it is one sentence, at once.
"""

import contextlib
import importlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

from eval.benchmarks import Benchmark, DataSource
from eval.errors import EvaluationError
from eval.files import of_folder
from visiondrop.errors import first_line

PACKAGES = {"cv2": "opencv-python-headless"}  # packages that have another name than their module


@contextlib.contextmanager
def working_directory(folder: Path | None) -> Iterator[None]:
    """Work inside `folder`: `load_dataset("owner/name")` takes a folder of that name there before it asks the hub."""
    before = Path.cwd()
    if folder is not None:
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _told(**values: str) -> Iterator[None]:
    """What lmms-eval takes from the environment only, set there for the time of the context."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def dataset_cache(folder: Path) -> Iterator[None]:
    """Let `datasets` and lmms-eval, in this process and its children, keep prepared data below `folder`."""
    import datasets
    from lmms_eval.api.task import _resolve_hf_datasets_cache_dir

    configured = datasets.config.HF_DATASETS_CACHE
    with _told(HF_DATASETS_CACHE=str(folder)):
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        _resolve_hf_datasets_cache_dir.cache_clear()
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE = configured
    _resolve_hf_datasets_cache_dir.cache_clear()


@contextlib.contextmanager
def place(folder: Path | None, files: str) -> Iterator[None]:
    """Where `load_dataset` finds the data: the hub (None), or a local folder whose files have the fingerprint `files`.

    `datasets` names the prepared copy of a local folder after its README only, so changed files, or another folder
    with the same README, would silently give the old rows: every fingerprint gets a cache of its own.  Tasks of videos look
    for them below HF_HOME: that is the folder too.
    """
    if folder is None:
        from huggingface_hub.constants import HF_HOME

        with _told(HF_HOME=str(HF_HOME)):
            yield
        return
    cache = Path(_cache_folder()) / "visiondrop" / files
    with dataset_cache(cache), _told(HF_HOME=str(folder)), working_directory(folder):
        yield


def drawn(benchmark: Benchmark, runs: Path) -> Path | None:
    """Folder with the question sets of a benchmark that we draw ourselves, made below `runs`; None for the others."""
    if not benchmark.drawn:
        return None
    write_sets = importlib.import_module(benchmark.drawn).write_sets
    return write_sets(runs / "data", tuple(source.config for source in benchmark.data)).parent.resolve()


def fingerprint_of(benchmark: Benchmark, data: Path | None) -> str:
    """ "hub", or the fingerprint of the files of the benchmark's data sets below `data`.

    Raises:
        EvaluationError: a folder is missing.
    """
    if data is None:
        return "hub"
    if not data.is_dir():
        raise EvaluationError(f"--data {data} is not a folder", "batch")
    paths = list(dict.fromkeys(source.path for source in benchmark.data))
    for path in paths:
        if not (data / path).is_dir():
            raise EvaluationError(
                f"--data {data} holds no {path}, which {benchmark.title} needs: put the data set there (parquet files "
                "and a README.md that names them, as on the hub), or leave --data out to fetch it",
                "benchmark",
            )
    if benchmark.videos and not (data / benchmark.videos).is_dir():
        raise EvaluationError(
            f"--data {data} holds no folder {benchmark.videos}, where lmms-eval looks for the videos of {benchmark.title}: "
            "unpack them there",
            "benchmark",
        )
    return "-".join(of_folder(data / path) for path in paths)


def check_imports(benchmark: Benchmark) -> None:
    """Refuse a benchmark whose task cannot be imported here.

    Raises:
        EvaluationError: a module is missing.
    """
    missing = [name for name in benchmark.imports if importlib.util.find_spec(name) is None]
    if missing:
        raise EvaluationError(
            f"lmms-eval's task of {benchmark.title} imports {', '.join(missing)}, which is not installed: install "
            f"{' '.join(PACKAGES.get(name, name) for name in missing)}",
            "benchmark",
        )


def check(benchmark: Benchmark, data: Path | None, files: str) -> dict[str, str]:
    """Load every split the task reads once, with lmms-eval's own cache, and check its columns.

    Args:
        data, files: the folder given by --data and its `fingerprint_of`.

    Returns:
        Data set path -> hub revision, "local" under --data, "unknown" where the cache does not say.

    Raises:
        EvaluationError: no network, no token, no such data set, split, column or row.
    """
    if data is None:
        for path in dict.fromkeys(source.path for source in benchmark.data):
            _check_hub(path)
    with place(data, files):
        return {source.path: _check_source(benchmark, source, data) for source in benchmark.data}


def _cache_folder() -> str:
    from lmms_eval.api.task import _resolve_hf_datasets_cache_dir

    return _resolve_hf_datasets_cache_dir()


def _check_hub(path: str) -> None:
    import huggingface_hub
    from datasets.naming import camelcase_to_snakecase
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if (Path.cwd() / path).is_dir():
        raise EvaluationError(
            f"the working directory holds a folder {path}, which would be read instead of the hub's data set: "
            "name it with --data . or start elsewhere",
            "benchmark",
        )
    owner, _, name = path.rpartition("/")
    cached = (Path(_cache_folder()) / f"{owner}___{camelcase_to_snakecase(name)}").is_dir()
    if not cached and huggingface_hub.constants.HF_HUB_OFFLINE:
        raise EvaluationError(
            f"data set {path} is not in the cache and HF_HUB_OFFLINE forbids fetching it: use --data DIR",
            "benchmark",
        )
    try:
        huggingface_hub.HfApi().dataset_info(path, timeout=20)
    except OfflineModeIsEnabled:
        pass
    except HfHubHTTPError as error:
        raise EvaluationError(
            f"the hub refuses data set {path} ({str(error).splitlines()[0]}): set HF_TOKEN or use --data DIR",
            "benchmark",
        ) from None
    except Exception as error:  # the HTTP client's own connection errors differ between hub versions
        if not cached:
            raise EvaluationError(
                f"data set {path} cannot be fetched, there is no network ({type(error).__name__}): "
                "give a folder that holds it with --data DIR",
                "benchmark",
            ) from None
    if huggingface_hub.get_token() is None:
        raise EvaluationError(
            "lmms-eval asks for a hub token even for public data sets: set HF_TOKEN (a read token is enough), "
            "or use --data DIR",
            "batch",
        )


def _check_source(benchmark: Benchmark, source: DataSource, data: Path | None) -> str:
    import datasets

    named = f"data set {source.path}" + (f" ({source.config})" if source.config else "")
    where = f" in {data}" if data is not None else ""
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        loaded = datasets.load_dataset(source.path, source.config, cache_dir=_cache_folder())
    except Exception as error:  # pyarrow, fsspec, yaml and datasets each raise their own kinds
        raise EvaluationError(
            f"{named}{where} cannot be loaded: {first_line(error)}; check its files and README.md",
            "benchmark",
        ) from None
    finally:
        if bars:
            datasets.utils.logging.enable_progress_bar()
    if source.split not in loaded:
        raise EvaluationError(
            f"{named}{where} has no split {source.split!r}, which {benchmark.task} needs; it has {', '.join(loaded)}",
            "benchmark",
        )
    split = loaded[source.split]
    missing = [c for c in source.columns if c not in split.column_names]
    if missing:
        raise EvaluationError(
            f"{named}{where}, split {source.split}: column {', '.join(missing)} is missing, which "
            f"{benchmark.task} reads; it has {', '.join(split.column_names)}",
            "benchmark",
        )
    if len(split) == 0:
        raise EvaluationError(f"{named}{where}, split {source.split}: there is no row", "benchmark")
    if data is not None:
        return "local"
    revisions = {m[1] for url in (split.info.download_checksums or {}) if (m := re.search(r"@([0-9a-f]{40})/", url))}
    return revisions.pop() if len(revisions) == 1 else "unknown"
