from frostline.vectors import Vectors, cover

VECTORS = Vectors(["ice", "snow"], [[1.0], [2.0]])


def test_cover_counts_and_lists_missing_words_in_their_order():
    got = cover(["slush", "ice", "Snow", "rain", "ice"], VECTORS)
    assert (got.total, got.found, got.missing, got.share) == (5, 2, ["slush", "Snow", "rain"], 0.4)
    assert str(got) == "2 of 5 words have a vector (40.0%); missing: slush, Snow, rain"


def test_lower_case_fallback_counts_as_found():
    assert cover(["ICE", "Snow", "Rain"], VECTORS, lowercase=True).missing == ["Rain"]


def test_many_missing_words_are_cut_short_when_printed():
    got = cover([f"w{number}" for number in range(1234)], VECTORS)
    assert str(got).endswith("missing: w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 and 1,224 more")


def test_nothing_missing_and_nothing_asked():
    assert str(cover(["ice"], VECTORS)) == "1 of 1 words have a vector (100.0%)"
    assert cover([], VECTORS).share == 1.0
