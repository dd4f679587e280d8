"""The verdict names the best regime and says whether the seeds agree."""

from __future__ import annotations

from frostline.demo.regimes import verdict


def test_the_verdict_names_whichever_regime_wins_and_whether_the_seeds_agree() -> None:
    assert verdict({"a": [0.1, 0.2], "b": [0.3, 0.4]}) == 'Highest mean: "b", 20.0 points above "a"; every seed agrees.'
    assert "may be chance" in verdict({"a": [0.1, 0.35], "b": [0.3, 0.4]})
