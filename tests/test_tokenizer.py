"""What a prompt becomes: ids that equal CLIP's, 77 to a row, whatever the text."""

import hashlib
import json
import random
import time
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax import tokenizer
from sdjax.errors import InputError
from sdjax.tokenizer import Tokenizer, clean

FIXTURES = Path(__file__).with_name("fixtures")
CASES = json.loads((FIXTURES / "clip_token_ids.json").read_text(encoding="utf-8"))
CORPUS = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3  # the example of Sennrich et al. 2016


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer.clip()


# The released vocabulary


def test_the_shipped_vocabulary_is_the_released_file():
    packed = Path(tokenizer.__file__).parent / "data" / "bpe_simple_vocab_16e6.txt.gz"
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


def test_it_has_512_bytes_then_48894_merges_then_start_and_end(clip):
    assert (clip.vocab_size, clip.start_id, clip.end_id, clip.context_length) == (49408, 49406, 49407, 77)
    assert clip.decode([0, 256, 512]) == "!! in"


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_ids_equal_the_reference(clip, case):
    assert [clip.start_id, *clip.encode(case["text"]), clip.end_id] == case["ids"]


def test_two_exclamation_marks_are_one_token_as_in_the_original(clip):
    assert clip.encode("!!") == [748]
    assert Tokenizer.clip("zero").encode("!!") == [748]


def test_special_tokens_written_out_are_special_as_in_the_original(clip):
    assert clip.encode("a<|endoftext|>b <|STARTOFTEXT|>") == [320, 49407, 321, 49406]


# Rows of 77


def test_a_row_is_start_then_words_then_end_then_padding(clip):
    row = clip("a red cube")
    assert row.shape == (1, 77) and row.dtype == np.int32
    assert row[0, :6].tolist() == [49406, 320, 736, 11353, 49407, 49407]


def test_stable_diffusion_1_pads_with_the_end_token_and_2_with_zero(clip):
    assert set(clip("a red cube")[0, 4:].tolist()) == {49407}
    zero = Tokenizer.clip("zero")("a red cube")[0]
    assert zero[4] == 49407 and set(zero[5:].tolist()) == {0}


def test_an_empty_prompt_is_start_end_and_padding(clip):
    assert Tokenizer.clip("zero")("")[0, :3].tolist() == [49406, 49407, 0]
    assert clip([]).shape == (0, 77)


def test_75_words_fit_without_a_warning(clip):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = clip(" ".join(["cube"] * 75))[0]
    assert row[75:].tolist() == [11353, 49407]


def test_a_longer_prompt_keeps_the_end_token_and_says_which_words_were_cut(clip):
    prompt = " ".join(["cube"] * 74) + " don't stop"
    with pytest.warns(UserWarning, match='room for 75 tokens, cut off: "\'t stop"$'):
        row = clip(["a cube", prompt])[1]
    assert row[74:].tolist() == [11353, 847, 49407]
    assert clip.truncated(prompt) == "'t stop"
    assert clip.truncated("a cube") == ""


# Cleaning


def test_cleaning_mends_unescapes_lowers_and_collapses_spaces():
    assert clean("  A\u3000CAFÃ©\n&amp;lt;3 “ﬁne”\x07 ") == 'a café <3 "fine"'


def test_after_1000_characters_all_is_mended_but_wrong_decoding():
    assert clean("word " * 300 + "“Ｃａｆe\u0301” &amp;lt;3 ﬁne Ã©").endswith(' "café" <3 fine ã©')


def test_half_a_surrogate_pair_becomes_the_replacement_character(clip):
    assert clip.decode(clip.encode("\ud83d")) == "\ufffd "


def test_an_endless_html_number_is_one_unknown_character():
    assert clean("&#" + "9" * 5000 + ";") == "\ufffd"
    assert clean("&#" + "0" * 5000 + "65;") == "a"


# There and back


def test_tokens_show_how_a_text_is_spelled(clip):
    assert clip.tokens("Cubes, küp!") == ["cubes</w>", ",</w>", "k", "ü", "p</w>", "!</w>"]
    assert clip.tokens("活") == [r"\xe6", r"\xb4", r"\xbb</w>"]


def test_decoding_puts_a_space_after_each_piece(clip):
    assert clip.decode(clip.encode("Can't stop?")) == "can 't stop ? "
    assert clip.decode(clip("a red cube")[0, :5]) == "<|startoftext|>a red cube <|endoftext|>"


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=100))
def test_decoding_gives_the_cleaned_text_up_to_spaces(clip, text):
    assert "".join(clip.decode(clip.encode(text)).split()) == clean(text).replace(" ", "")


@settings(deadline=None, max_examples=300)
@given(word=st.text("aehint", min_size=1, max_size=60))
def test_joining_by_heap_equals_joining_the_earliest_pair_until_none_is_left(clip, word):
    joined = clip._joined
    symbols = tokenizer._symbols(word)
    expected = list(symbols)
    while known := [joined[pair] for pair in pairwise(expected) if pair in joined]:
        i = 0
        while i + 1 < len(expected):
            if joined.get((expected[i], expected[i + 1])) == min(known):
                expected[i : i + 2] = [min(known)]
            i += 1
    assert tokenizer._join_pairs(symbols, joined) == expected


# A vocabulary of one's own


def test_learning_joins_the_most_frequent_pair_again_and_again():
    # "e s" and "s t</w>" occur 9 times each: the smaller id, "e", goes first.
    learned = Tokenizer.learn(CORPUS, 4)
    assert learned.merges == ("e s", "es t</w>", "l o", "e w")
    assert (learned.start_id, learned.end_id, learned.vocab_size) == (516, 517, 518)
    assert learned.tokens("lowest") == ["lo", "w", "est</w>"]


def test_the_order_of_the_corpus_does_not_matter():
    assert Tokenizer.learn(reversed(CORPUS), 8).merges == Tokenizer.learn(CORPUS, 8).merges


def test_turkish_letters_are_two_bytes_each_and_can_be_learned():
    assert len(Tokenizer.learn([], 0).encode("küp")) == 4
    assert Tokenizer.learn(["küp küp küre"], 3).merges == ("k Ã", "kÃ ¼", "kÃ¼ p</w>")
    assert Tokenizer.learn(["küp küp küre"], 3).tokens("KÜP küre") == ["küp</w>", "kü", "r", "e</w>"]


def test_a_corpus_without_enough_pairs_is_refused():
    with pytest.raises(InputError, match="corpus: has only 1 pairs to merge, not 5; ask for fewer"):
        Tokenizer.learn(["of"], 5)


def test_a_saved_vocabulary_comes_back_equal(tmp_path):
    learned = Tokenizer.learn(CORPUS, 6, context_length=16, padding="zero")
    learned.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.merges, loaded.context_length, loaded.pad_id) == (learned.merges, 16, 0)
    assert loaded("the newest low").tolist() == learned("the newest low").tolist()


GOOD = {"merges": ["l o", "lo w</w>"], "context_length": 77, "padding": "eos"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "found list, expected the keys"),
        ({"merges": []}, r"found \['merges'\], expected the keys"),
        (GOOD | {"more": 1}, "expected the keys"),
        (GOOD | {"merges": [["l", "o"]]}, "merges is not a list of strings"),
        (GOOD | {"merges": ["lo w"]}, "number 0, 'lo w', is not two tokens known before it"),
        (GOOD | {"merges": ["l"]}, "number 0, 'l', is not two tokens"),
        (GOOD | {"merges": ["l</w> o"]}, "number 0, 'l</w> o', is not two tokens"),
        (GOOD | {"merges": ["l o", "l o"]}, "number 1, 'l o', makes a token that exists"),
        (GOOD | {"merges": [f"{'a' * 2**i} {'a' * 2**i}" for i in range(9)]}, "number 5, .* over 32 bytes"),
        (GOOD | {"context_length": 2}, "context_length: found 2, expected an integer, 3 to"),
        (GOOD | {"context_length": 77.0}, "context_length: found 77.0"),
        (GOOD | {"padding": "left"}, "padding: found 'left', expected 'eos'"),
    ],
)
def test_a_bad_vocabulary_file_is_named_with_what_is_wrong(tmp_path, content, complaint):
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=rf"bad\.json: .*{complaint}"):
        Tokenizer.load(path)


def test_a_missing_vocabulary_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.json: cannot be read"):
        Tokenizer.load(tmp_path / "nowhere.json")


# Untrusted prompts


def test_what_is_not_text_is_refused(clip):
    for wrong in (b"cube", 7, None):
        with pytest.raises(InputError, match="texts: found (bytes|int|NoneType), expected a str or a list"):
            clip(wrong)
    with pytest.raises(InputError, match="text: found int, expected a str"):
        clip(["a cube", 7])
    with pytest.raises(InputError, match="ids: found 49408, expected integers, 0 to 49407"):
        clip.decode([320, 49408])


def test_a_million_bytes_are_allowed_and_one_more_is_not(clip):
    assert clip("é" + " " * 999_998)[0, 1] != clip.end_id
    with pytest.raises(InputError, match="found 1,000,001 bytes of UTF-8, expected at most 1,000,000"):
        clip("é" + " " * 999_999)


LETTERS = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=10**6))
HOSTILE = {
    "one letter": "a" * 10**6,
    "random letters": LETTERS,
    "random words": " ".join(LETTERS[i : i + 5] for i in range(0, 833_330, 5)),
    "one emoji": "😀" * 250_000,
    "punctuation": "!?.," * 250_000,
    "entities": "&lt;" * 250_000,
    "entities in entities": "&" + "amp;" * 249_999,
    "unknown entities": ("&" + "a" * 30) * 32_258,
    "one number": "&#" + "1" * 999_998,
    "lines": "é\n" * 333_333,
    "wrongly decoded": "Ã©" * 250_000,
    "wrongly decoded in parts": "Ã©日" * 142_857,
    "layers of wrong decoding": "Â" * 499_999 + "©",
    "control characters": "\x80\x01\n" * 250_000,
    "unsorted combining marks": "a" + "\u0301\u0316" * 249_999,
    "surrogates": "\ud83d" * 333_333,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_megabyte_costs_under_two_seconds(clip, text):
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = clip(text)[0]
    assert time.process_time() - started < 2
    assert row[0] == clip.start_id and row[76] == clip.end_id


@pytest.mark.parametrize("name", ["one letter", "random letters", "one emoji"])
def test_the_start_of_a_giant_word_is_the_start_of_its_whole_spelling(clip, name):
    giant = HOSTILE[name][:200_000]
    assert clip._spell_start(giant, 76)[:76] == clip._spell(giant)[:76]
