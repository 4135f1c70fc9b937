"""Text to token ids, as CLIP does it: clean the text, split it into pieces, spell each piece in tokens.

    "A  Red Cube!"  ->  "a red cube!"  ->  a | red | cube | !  ->  [start, 320, 736, 11353, 256, end, pad ...]

A piece starts as its UTF-8 bytes, the last of which carries the mark `</w>`. Byte-pair encoding then joins
neighbours, always the pair that was learned first, until no neighbours are a known pair. So the vocabulary is
    256 bytes, the same 256 with `</w>`, one token for each merge, <|startoftext|>, <|endoftext|>
and every text has a spelling, because every byte has one. Source: openai/CLIP, clip/simple_tokenizer.py.
"""

from __future__ import annotations

import gzip
import heapq
import html
import json
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Literal

import ftfy
import numpy as np
import regex
from jaxtyping import Int32

from sdjax.errors import InputError
from sdjax.files import written_whole

Padding = Literal["eos", "zero"]

MAX_BYTES = 1_000_000  # of one text in UTF-8
MAX_FILE_BYTES = 16_000_000  # of one vocabulary file; CLIP's own is 0.8 MB
MAX_TOKEN_BYTES = 32  # CLIP's longest; merges of merges could double with every line of a hostile file
MENDED = 1000  # characters that get all of ftfy, see clean()

START, END = "<|startoftext|>", "<|endoftext|>"
PIECES = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)

# Bytes in the order of their ids: first those that print as one Latin-1 character, then the rest, which a
# vocabulary file writes as the characters from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = bytes(_PRINTABLE) + bytes(b for b in range(256) if b not in _PRINTABLE)
_NAMES = [chr(b) for b in _PRINTABLE] + [chr(256 + i) for i in range(256 - len(_PRINTABLE))]
_ID_OF_BYTE = bytes(_BYTES.index(b) for b in range(256))
_BASE = 512
_MARK = "</w>"

_HEAD = regex.compile(rf"(?s).{{{MENDED // 2},{MENDED}}}(?!\S)|.{{,{MENDED}}}")
_LONG_RUN_OF_MARKS = regex.compile(r"(\p{M}{31,})")
_LONG_NUMBER = regex.compile(r"&#0*([0-9]{1,8})[0-9]*")
_BY_CHARACTER = ftfy.TextFixerConfig(
    unescape_html=False, fix_encoding=False, fix_c1_controls=False, normalization=None, explain=False
)


def utf8_bytes(text: str) -> int:
    """How long a text is in UTF-8, of which a prompt may have MAX_BYTES; half a UTF-16 pair counts three."""
    return len(text.encode("utf-8", "surrogatepass"))


def clean(text: str) -> str:
    """The text as CLIP reads it: mended by ftfy, HTML unescaped twice, single spaces, lower case.

    Wrongly decoded text ("Ã©" for "é") costs ftfy a round for each layer: 2,000 characters "Â" take seconds.
    Hence the first 1,000 characters, more than 77 tokens of English hold, get all of ftfy. Later ones get all
    that one pass can do, which leaves out wrong decoding and HTML that was escaped three times or more.
    Errors: InputError if `text` is not a str or is over 1,000,000 bytes of UTF-8.
    """
    if not isinstance(text, str):
        raise InputError(f"text: found {type(text).__name__}, expected a str; pass one str for each prompt")
    size = utf8_bytes(text)
    if size > MAX_BYTES:
        raise InputError(f"text: found {size:,} bytes of UTF-8, expected at most {MAX_BYTES:,}; shorten it")
    head = _HEAD.match(text).group()
    rest = text[len(head) :]
    text = ftfy.fix_text(head) + (_mend_by_character(rest) if rest else "")
    return " ".join(_unescape(_unescape(text)).split()).lower()


def _mend_by_character(text: str) -> str:
    """What ftfy does to text that is not wrongly decoded, in one pass over any number of lines."""
    text = ftfy.fix_and_explain(text, _BY_CHARACTER).text
    # Unicode sorts a run of combining marks in quadratic time. 30 is the run that UAX 15 calls stream-safe.
    parts = _LONG_RUN_OF_MARKS.split(text)
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


def _unescape(text: str) -> str:
    # Python refuses integers of over 4,300 digits. Eight significant digits are beyond Unicode already.
    return html.unescape(_LONG_NUMBER.sub(r"&#\1", text))


class Tokenizer:
    """Texts to ids [b, context_length] and back, with a vocabulary of byte-pair merges.

    `merges` are in the order they were learned, each "left right" as CLIP's file writes it; `padding` fills a
    row with the end token ("eos", SD 1.x) or with id 0 ("zero", SD 2.x).
    Errors: InputError names the merge or the argument that is wrong.
    """

    def __init__(self, merges: Sequence[str], *, context_length: int = 77, padding: Padding = "eos"):
        if padding not in ("eos", "zero"):
            raise InputError(f"padding: found {padding!r}, expected 'eos' (SD 1.x) or 'zero' (SD 2.x)")
        if type(context_length) is not int or not 3 <= context_length <= 65_536:
            raise InputError(f"context_length: found {context_length!r}, expected an integer, 3 to 65,536")
        self.merges = tuple(merges)
        self.context_length = context_length
        self.padding = padding
        self._bytes, self._closes, self._joined = _vocabulary(self.merges)
        self.start_id = _BASE + len(self.merges)
        self.end_id = self.start_id + 1
        self.vocab_size = self.start_id + 2
        self.pad_id = self.end_id if padding == "eos" else 0
        self._special = {START: [self.start_id], END: [self.end_id]}
        self._spelled: dict[str, list[int]] = {}

    @classmethod
    def clip(cls, padding: Padding = "eos") -> Tokenizer:
        """The released vocabulary of SD 1.x ("eos") and SD 2.x ("zero"): 49,408 tokens, no weights needed."""
        return cls(_clip_merges(), padding=padding)

    @classmethod
    def learn(
        cls, corpus: Iterable[str], merges: int, *, context_length: int = 77, padding: Padding = "eos"
    ) -> Tokenizer:
        """Learns `merges` merges from texts: again and again the most frequent pair of neighbours is joined.

        Equally frequent pairs go by their ids, so the same corpus gives the same vocabulary in any order.
        Errors: InputError if the corpus runs out of pairs. Source: Sennrich et al. 2016, algorithm 1.
        """
        if type(merges) is not int or merges < 0:
            raise InputError(f"merges: found {merges!r}, expected how many to learn, an integer from 0")
        if isinstance(corpus, str):
            raise InputError("corpus: found one str, expected texts; pass a list of them")
        words = Counter(piece for text in corpus for piece in PIECES.findall(clean(text)))
        del words[START], words[END]
        return cls(_learn_merges(words, merges), context_length=context_length, padding=padding)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Tokenizer:
        """Reads what `save` wrote; InputError names the file and what is wrong with it."""
        try:
            with open(path, "rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}), expected a vocabulary") from None
        if len(raw) > MAX_FILE_BYTES:
            raise InputError(f"{path}: over {MAX_FILE_BYTES:,} bytes, expected a vocabulary of merges")
        try:
            content = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError):
            raise InputError(f"{path}: not JSON, expected a vocabulary that Tokenizer.save wrote") from None
        if not isinstance(content, dict) or set(content) != {"merges", "context_length", "padding"}:
            found = sorted(content)[:5] if isinstance(content, dict) else type(content).__name__
            raise InputError(f"{path}: found {found}, expected the keys merges, context_length and padding")
        merges = content.pop("merges")
        if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
            raise InputError(f"{path}: merges is not a list of strings, expected entries such as 'r e'")
        try:
            return cls(merges, **content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the vocabulary as one JSON file: merges, context_length, padding; whole or not at all."""
        content = {
            "context_length": self.context_length,
            "padding": self.padding,
            "merges": self.merges,
        }
        with written_whole(Path(path)) as part:
            part.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    def __call__(self, texts: str | Sequence[str]) -> Int32[np.ndarray, "b n"]:
        """Ids of each text between start and end token, padded to `context_length`.

        A longer text keeps its first tokens and the end token; a warning says which words were cut.
        Errors: InputError as `clean`.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, (list, tuple)):
            raise InputError(f"texts: found {type(texts).__name__}, expected a str or a list of them")
        room = self.context_length - 2
        rows = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        for row, text in zip(rows, texts):
            ids, cut = self._fit(text)
            row[: len(ids) + 2] = [self.start_id, *ids, self.end_id]
            if cut:
                shown = cut if len(cut) <= 200 else cut[:200] + "..."
                warnings.warn(f"a prompt has room for {room} tokens, cut off: {shown!r}", stacklevel=2)
        return rows

    def encode(self, text: str) -> list[int]:
        """Ids of the whole text, without start and end token."""
        return [token for piece in PIECES.findall(clean(text)) for token in self._spell(piece)]

    def truncated(self, text: str) -> str:
        """What of the cleaned text does not fit, from the first piece cut on; "" if everything fits."""
        return self._fit(text)[1]

    def tokens(self, text: str) -> list[str]:
        r"""The tokens of a text to read: `</w>` closes a piece, `\xe7` is a byte of a longer character."""
        return [self._readable(token) for token in self.encode(text)]

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text that ids spell, with a space after each word; half a character becomes U+FFFD.

        Errors: InputError if an id is outside the vocabulary.
        """
        ids = list(ids)
        for i in ids:
            if not isinstance(i, (int, np.integer)) or not 0 <= i < self.vocab_size:
                raise InputError(f"ids: found {str(i)[:80]}, expected integers, 0 to {self.vocab_size - 1}")
        special = {self.start_id: START.encode(), self.end_id: END.encode()}
        spelled = (special.get(i) or self._bytes[i] + b" " * self._closes[i] for i in ids)
        return b"".join(spelled).decode("utf-8", "replace")

    def _fit(self, text: str) -> tuple[list[int], str]:
        cleaned, room, ids = clean(text), self.context_length - 2, []
        for piece in PIECES.finditer(cleaned):
            ids += self._spell_start(piece.group(), room + 1)
            if len(ids) > room:
                return ids[:room], cleaned[piece.start() :]
        return ids, ""

    def _readable(self, token: int) -> str:
        if token >= self.start_id:
            return START if token == self.start_id else END
        return self._bytes[token].decode("utf-8", "backslashreplace") + _MARK * self._closes[token]

    def _spell(self, piece: str) -> list[int]:
        """Ids of one piece; short ones are remembered, as texts repeat their words."""
        if piece in self._special:
            return self._special[piece]
        if len(piece) > 32:
            return _join_pairs(_symbols(piece), self._joined)
        if piece not in self._spelled:
            if len(self._spelled) == 65_536:
                self._spelled.clear()
            self._spelled[piece] = _join_pairs(_symbols(piece), self._joined)
        return self._spelled[piece]

    def _spell_start(self, piece: str, wanted: int) -> list[int]:
        """Ids of one piece, or the first `wanted` of them where it would cost much to spell it all.

        Nothing is joined across the end of a token, so what is before it is spelled as if it stood alone. Of
        any MAX_TOKEN_BYTES places in a row at least one is such an end; only the whole tells which. But if
        the spellings up to each of these places start with the same tokens, so does the whole.
        """
        reach = (wanted + 1) * MAX_TOKEN_BYTES
        if len(piece) <= reach * MAX_TOKEN_BYTES:
            return self._spell(piece)
        symbols = _symbols(piece[: reach + 1])
        spellings = (_join_pairs(symbols[: reach - k], self._joined) for k in range(MAX_TOKEN_BYTES))
        starts = {tuple(spelling[:wanted]) for spelling in spellings}
        return list(starts.pop()) if len(starts) == 1 else self._spell(piece)


@lru_cache(maxsize=1)
def _clip_merges() -> tuple[str, ...]:
    """The first 48,894 merges of the released file; the rest of its lines were never used."""
    packed = resources.files("sdjax").joinpath("data/bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    return tuple(lines[1 : 49_152 - 256 - 2 + 1])


def base_names() -> list[str]:
    """The names of the first 512 tokens in vocab.json: each byte within a word, then each at its end."""
    return _NAMES + [name + _MARK for name in _NAMES]


@lru_cache(maxsize=4)  # 0.1 s for CLIP's, and nobody changes what it gives
def _vocabulary(merges: tuple[str, ...]) -> tuple[list[bytes], list[bool], dict[tuple[int, int], int]]:
    """Each token's bytes, whether it closes a word, and the token that a pair of tokens becomes."""
    content = [bytes([b]) for b in _BYTES] * 2
    closes = [False] * 256 + [True] * 256
    joined = {}
    known = {name: token for token, name in enumerate(base_names())}
    for rank, merge in enumerate(merges):
        pair = tuple(known.get(name) for name in merge.split(" "))
        if len(pair) != 2 or None in pair or closes[pair[0]]:
            raise InputError(f"merges: number {rank}, {merge[:80]!r}, is not two tokens known before it")
        left, right = pair
        name = merge.replace(" ", "")
        if name in known:
            raise InputError(f"merges: number {rank}, {merge[:80]!r}, makes a token that exists already")
        if len(content[left]) + len(content[right]) > MAX_TOKEN_BYTES:
            raise InputError(f"merges: number {rank}, {merge[:80]!r}, is over {MAX_TOKEN_BYTES} bytes long")
        known[name] = joined[pair] = len(content)
        content.append(content[left] + content[right])
        closes.append(closes[right])
    return content, closes, joined


def _symbols(piece: str) -> list[int]:
    """The piece as ids of single bytes, the last one with its mark."""
    symbols = list(piece.encode("utf-8").translate(_ID_OF_BYTE))
    symbols[-1] += 256
    return symbols


def _join_pairs(symbols: list[int], joined: dict[tuple[int, int], int]) -> list[int]:
    """Joins neighbours, the pair learned first before others and left before right, while any pair is known.

    O(n log n): `places` says where each token could be made, and a heap which token comes first. A token's id
    is higher than those of its parts, so making it only adds places of tokens that come later.
    """
    places = defaultdict(list)
    for place, token in enumerate(map(joined.get, pairwise(symbols))):
        if token is not None:
            places[token].append(place)
    waiting = list(places)
    heapq.heapify(waiting)
    symbols = [*symbols, -1]  # no token: it ends the list on the right, and as symbols[-1] on the left
    after = [*range(1, len(symbols)), 0]
    before = [*range(-1, len(symbols) - 1)]
    while waiting:
        token = heapq.heappop(waiting)
        for i in sorted(places.pop(token)):
            j = after[i]
            if joined.get((symbols[i], symbols[j])) != token:
                continue  # one of the two was joined to its other neighbour meanwhile
            h, k = before[i], after[j]
            symbols[i], symbols[j] = token, -1
            after[i], before[k] = k, i
            for place, pair in ((h, (symbols[h], token)), (i, (token, symbols[k]))):
                if pair in joined:
                    if joined[pair] not in places:
                        heapq.heappush(waiting, joined[pair])
                    places[joined[pair]].append(place)
    return [symbol for symbol in symbols if symbol >= 0]


def _learn_merges(words: Counter[str], wanted: int) -> list[str]:
    """The `wanted` most frequent pairs, each counted after the ones before it were joined."""
    spelled = [_symbols(word) for word in words]
    weights = list(words.values())
    counts: Counter[tuple[int, int]] = Counter()
    holders = defaultdict(set)  # the words in which a pair occurs, or once did
    for word, symbols in enumerate(spelled):
        for pair in pairwise(symbols):
            counts[pair] += weights[word]
            holders[pair].add(word)
    frequent = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(frequent)
    names = base_names()
    taken = set(names)
    merges: list[str] = []
    while len(merges) < wanted:
        if not frequent:
            raise InputError(f"corpus: has only {len(merges)} pairs to merge, not {wanted}; ask for fewer")
        count, (left, right) = heapq.heappop(frequent)
        name = names[left] + names[right]
        if -count != counts[left, right] or name in taken or len(name) > MAX_TOKEN_BYTES:
            continue  # counted anew since, or a token that two pairs would make
        merges.append(f"{names[left]} {names[right]}")
        join = {(left, right): len(names)}
        names.append(name)
        taken.add(name)
        changed = set()
        for word in holders.pop((left, right)):
            old, spelled[word] = spelled[word], _join_pairs(spelled[word], join)
            for pair in pairwise(old):
                counts[pair] -= weights[word]
            for pair in pairwise(spelled[word]):
                counts[pair] += weights[word]
                holders[pair].add(word)
            changed.update(pairwise(old), pairwise(spelled[word]))
        for pair in changed:
            if counts[pair] > 0:
                heapq.heappush(frequent, (-counts[pair], pair))
    return merges
