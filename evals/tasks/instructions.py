"""IFEval by lm-eval's own checks, with the tables that they need at hand: functions that YAML files name.

lm-eval's module downloads NLTK's tables of English sentences as soon as it is read, and lets langdetect draw at random.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posttrain.evals.errors import SuiteError

_TABLES = "tokenizers/punkt_tab/english"


def with_tables(docs: Any) -> Any:
    """Returns the rows as they are, once what checks them is known to be here: answers take long to write."""
    find_tables()
    return docs


def checked(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Scores an answer strictly and loosely (Zhou et al. 2023, arXiv:2311.07911, section 2), per prompt and rule."""
    return _checks().process_results(doc, results)


def share_of_rules(items: list[list[bool]]) -> float:
    """Returns the share of all rules that were followed."""
    followed = [one for item in items for one in item]
    return sum(followed) / len(followed)


def _checks() -> Any:
    find_tables()
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # it samples parts of the text; without a seed two runs can differ
    from lm_eval.tasks.ifeval import utils

    return utils


def find_tables() -> None:
    """Finds NLTK's English tables where NLTK looks, or in the wheel of ``llama-index-core``, which ships them.

    Raises:
        SuiteError: They are not here.
    """
    import nltk

    parent = find_spec("llama_index")
    for folder in parent.submodule_search_locations or () if parent else ():
        shipped = str(Path(folder) / "core" / "_static" / "nltk_cache")
        if Path(shipped).is_dir() and shipped not in nltk.data.path:
            nltk.data.path.append(shipped)
    try:
        nltk.data.find(_TABLES)
    except LookupError as error:
        hint = "python -m nltk.downloader punkt_tab, or pip install --no-deps llama-index-core, which ships it"
        raise SuiteError("NLTK's table punkt_tab is not here, by which sentences are counted", hint=hint) from error
