"""Tables set the right figures side by side, and differences are what they are said to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.config import PRESETS, BadInput
from omnirouter.evaluate import tables
from omnirouter.evaluate.published import TABLES, find_set, find_system
from omnirouter.evaluate.significance import SetRate, compare, named_files, read_results

WORDS = ["red", "green", "blue", "house", "garden", "river", "stone", "window", "door", "tree"]


def write_lines(path: Path, sets: dict[str, Sequence[int]]) -> str:
    """Utterances of ten words, of which as many are wrong as the set's numbers say."""
    rows = []
    for name, wrong in sets.items():
        for number, errors in enumerate(wrong):
            heard = ["xyz"] * errors + WORDS[errors:]
            rows.append(
                {
                    "set": name,
                    "id": f"{name}-{number}",
                    "reference": " ".join(WORDS),
                    "hypothesis": " ".join(heard),
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rate(wrong: Sequence[int]) -> SetRate:
    counts = {str(number): (errors, 10, b"") for number, errors in enumerate(wrong)}
    wer = sum(wrong) / (10 * len(wrong))
    return SetRate(wer=wer, ci_low=wer, ci_high=wer, utterances=counts)


def test_published_tables_are_whole() -> None:
    """Every system is a preset, has a rate for every set, and names lead back to one set."""
    for table in TABLES.values():
        for system, rates in table.systems.items():
            assert system in PRESETS
            assert len(rates) == len(table.sets)
            assert find_system(table, system) == system
        for own in table.sets:
            for name in (own.label, *own.stems, f"cuts_{own.stems[0].replace('-', '_')}"):
                assert find_set(table, name) is own
    assert set().union(*(table.systems for table in TABLES.values())) == set(list(PRESETS)[:13])


def test_the_papers_headline() -> None:
    """The paper's 11.2% and 8.2% are means of the sets' changes over its 11 test columns."""
    one = SetRate(wer=0.1, ci_low=0.1, ci_high=0.1)
    built = tables.build({"mine": {own.stems[0]: one for own in TABLES[1].sets}}, TABLES[1])
    assert len(built.mean_sets) == 11
    changes = {(d.system, d.baseline): d for d in built.published_differences}
    against_dense = changes["omni-246m", "dense-140m"]
    against_switch = changes["omni-246m", "switch-246m"]
    assert against_dense.mean_of_changes == pytest.approx(-0.1115, abs=5e-5)
    assert against_switch.mean_of_changes == pytest.approx(-0.0817, abs=5e-5)
    assert against_dense.change_of_mean == pytest.approx(-0.088, abs=5e-4)
    assert against_switch.change_of_mean == pytest.approx(-0.067, abs=5e-4)


def rates(values: dict[str, float]) -> dict[str, SetRate]:
    return {name: SetRate(wer=wer, ci_low=wer, ci_high=wer) for name, wer in values.items()}


def test_the_papers_claims_on_libriheavy() -> None:
    """13.1/8.8% against Switch and 19.7/14.7% against Dense are changes on single sets."""
    built = tables.build({"omni": rates({"test-clean": 0.02, "test-other": 0.05})}, TABLES[4])
    changes = {(d.system, d.baseline): d.by_set for d in built.published_differences}
    for baseline, claimed in (("switch-559m", (13.1, 8.8)), ("dense-84m", (19.7, 14.7))):
        by_set = changes["omni-559m", baseline]
        for name, value in zip(("dev-other", "test-other"), claimed, strict=True):
            assert -100 * by_set[name] == pytest.approx(value, abs=0.06)
    text = tables.to_markdown(built)
    assert "|  | dev-clean* | dev-other* | test-clean | test-other |" in text
    assert "| paper: omni-559m against switch-559m | -5.3% | -13.1% | -4.8% | -8.8% |" in text
    assert "13.1% and 8.8% against Switch" in text
    assert "from the paper's rounded rates" in text
    assert "11.2%" not in text


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([own.stems[0] for own in TABLES[1].sets], "over the same 11 test sets"),
        ([own.stems[0] for own in TABLES[1].sets if own.in_mean], "over the same 11 test sets"),
        (["ami", "fleurs"], "over 2 of 11 test sets, so it is not the quantity"),
    ],
)
def test_the_headline_is_named_where_ours_is_the_same_quantity(
    names: list[str], words: str
) -> None:
    built = tables.build({"omni": rates(dict.fromkeys(names, 0.1))}, TABLES[1])
    assert words in built.claim and words in " ".join(tables.notes(built))
    ours = tables.build({"omni": rates(dict.fromkeys(names, 0.1))}, None)
    assert ours.claim == ""


@pytest.mark.parametrize(("number", "count"), [(1, 3), (2, 9), (3, 9), (4, 3)])
def test_only_what_the_paper_compares_is_compared(number: int, count: int) -> None:
    """Models of one size, not all 36 pairs of Table III; systems of our own with every other."""
    layout = TABLES[number]
    name = layout.sets[-1].stems[0]
    ours = {system: rates({name: 0.1}) for system in layout.systems}
    built = tables.build(ours, layout)
    pairs = {(d.system, d.baseline) for d in built.differences}
    assert len(pairs) == count == len(built.published_differences)
    assert pairs == set(layout.pairs)
    more = tables.build(ours | {"mine": rates({name: 0.1})}, layout)
    assert len(more.differences) == count + len(layout.systems)


def test_a_mean_is_of_two_sets_or_more() -> None:
    for names, shown in ((["a"], False), (["a", "b"], True)):
        built = tables.build({"omni": rates(dict.fromkeys(names, 0.1))}, None)
        assert ("| mean |" in tables.to_markdown(built)) == shown


def test_a_change_on_one_set_is_shown_once() -> None:
    """It is its own mean; a set beside it that counts in no mean still has its column."""
    results = {"a": rates({"x": 0.2}), "b": rates({"x": 0.1})}
    text = tables.to_markdown(tables.build(results, None))
    assert "|  | change on x | p |" in text and text.count("-50.0%") == 1
    assert "mean" not in text
    claimed = TABLES[1].claim_sets[0]
    of_paper = {"a": rates({claimed: 0.2}), "b": rates({claimed: 0.1})}
    text = tables.to_markdown(tables.build(of_paper, TABLES[1]))
    assert "The change is on 1 of 11 test sets" in text and "Mean of changes" not in text
    results = {name: {**own, "y": rates({"y": 0.3})["y"]} for name, own in results.items()}
    text = tables.to_markdown(tables.build(results, None))
    assert "| mean of changes | change of mean |" in text and "|  | x | y |" in text


@pytest.mark.parametrize("count", [1, 2])
def test_bold_is_for_the_better_of_two(count: int) -> None:
    """A system alone is the best of nothing."""
    results = {name: rates({"x": 0.1}) for name in ("a", "b")[:count]}
    results["a"] = {**results["a"], **rates({"y": 0.2})}
    built = tables.build(results, None)
    assert built.best("x") == ({"a", "b"} if count == 2 else set())
    assert built.best("y") == ({"a"} if count == 2 else set())
    assert tables.to_markdown(built).count("| **1") == (2 if count == 2 else 0)


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0535, "5.4"), (0.0585, "5.9"), (0.0645, "6.5"), (0.05349, "5.3"), (1.0, "100.0")],
)
def test_halves_are_rounded_alike(fraction: float, text: str) -> None:
    """Means of two rates with one decimal end in halves, which binary fractions miss."""
    assert tables.per_cent(fraction) == text
    assert (tables.change(fraction), tables.change(-fraction)) == (f"+{text}%", f"-{text}%")


def test_both_relative_changes() -> None:
    """10% of 20 errors and 50% of 4: means of changes and change of means differ."""
    system = {"a": rate([9, 9]), "b": rate([1, 1])}
    baseline = {"a": rate([10, 10]), "b": rate([2, 2])}
    difference = compare("x", system, "y", baseline)
    assert difference is not None and difference.sets == 2
    assert difference.mean_of_changes == pytest.approx(-0.3)
    assert difference.change_of_mean == pytest.approx(-2 / 12)


def test_pairs_see_what_intervals_do_not() -> None:
    """One error fewer in each utterance is certain, however much the utterances differ."""
    wrong = np.random.default_rng(0).integers(1, 9, size=60).tolist()
    difference = compare("x", {"a": rate([w - 1 for w in wrong])}, "y", {"a": rate(wrong)})
    assert difference is not None and difference.interval is not None and difference.p is not None
    assert difference.interval[1] < 0 and difference.p < 0.01
    shuffled = np.random.default_rng(1).permutation(wrong).tolist()
    other = compare("x", {"a": rate(shuffled)}, "y", {"a": rate(wrong)})
    assert other is not None and other.p is not None and other.interval is not None
    assert other.change_of_mean == 0 and other.p > 0.5
    assert other.interval[0] < 0 < other.interval[1]


def test_p_values_are_even_where_nothing_differs() -> None:
    """Two systems that err alike at random: about a tenth of p-values below a tenth."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(60):
        a, b = rng.integers(0, 5, size=(2, 80)).tolist()
        difference = compare("x", {"a": rate(a)}, "y", {"a": rate(b)})
        assert difference is not None and difference.p is not None
        found.append(difference.p)
    assert 0 <= sum(p < 0.1 for p in found) <= 14  # 6 expected; P(more than 14) is below 0.1%
    assert 15 <= sum(p < 0.5 for p in found) <= 45


def test_only_common_utterances_are_paired() -> None:
    """What one system could not read counts for neither; nothing in common is an error."""
    whole = rate([5, 0, 0])
    part = SetRate(wer=0.1, ci_low=0, ci_high=0, utterances={"1": (1, 10, b""), "2": (1, 10, b"")})
    difference = compare("x", {"a": whole}, "y", {"a": part})
    assert difference is not None and difference.change_of_mean == pytest.approx(-1.0)
    elsewhere = SetRate(wer=0.1, ci_low=0, ci_high=0, utterances={"9": (1, 10, b"")})
    with pytest.raises(BadInput, match="a: the systems have no utterance"):
        compare("x", {"a": whole}, "y", {"a": elsewhere})


def test_a_set_without_errors_counts_in_the_mean() -> None:
    """It has no relative change of its own; a baseline without any error has none at all."""
    none, half, some = rate([0] * 40), rate([5] * 40), rate([2, 3] * 20)
    difference = compare("x", {"a": half, "b": some}, "y", {"a": none, "b": some})
    assert difference is not None and difference.sets == 2
    assert difference.mean_of_changes == 0 and difference.change_of_mean == pytest.approx(2.0)
    assert difference.interval_of_mean is not None and difference.p is not None
    assert difference.interval_of_mean[0] > 1 and difference.p < 0.01
    assert compare("x", {"a": half}, "y", {"a": none}) is None


def test_draws_without_errors_of_the_baseline_say_nothing() -> None:
    """They have no relative change, and must not pass for one of 0 or of millions."""
    baseline, system = rate([1] + [0] * 19), rate([5, 5] + [0] * 18)
    difference = compare("x", {"a": system}, "y", {"a": baseline})
    assert difference is not None and difference.interval is not None
    assert difference.interval_of_mean is not None
    assert difference.mean_of_changes == pytest.approx(9.0)
    assert 1 < difference.interval[0] < 9 < difference.interval[1] < 100
    assert difference.interval_of_mean == difference.interval


def test_results_on_different_transcripts_are_not_compared() -> None:
    """Errors of one would be divided by the words of the other."""
    short = SetRate(wer=0.5, ci_low=0.5, ci_high=0.5, utterances={"0": (1, 10, b"other")})
    with pytest.raises(BadInput, match="a: 0 has another transcript in one result"):
        compare("x", {"a": short}, "y", {"a": rate([1])})


def test_results_of_other_words_are_told_apart_though_their_numbers_agree(tmp_path: Path) -> None:
    """Files of both kinds know their references by more than a count of words."""
    for name, word in (("a", "red"), ("b", "blue")):
        row = {"set": "dev", "id": "1", "reference": f"{word} house", "hypothesis": "no house"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        rates = {"wer": 0.2, "ci_low": 0.1, "ci_high": 0.3, "references": word}
        (tmp_path / f"{name}.json").write_text(json.dumps({"dev": rates}))
    for ending, problem in ((".jsonl", "dev: 1 has another"), (".json", "on different transcr")):
        found = {name: read_results(tmp_path / f"{name}{ending}") for name in "ab"}
        with pytest.raises(BadInput, match=problem):
            tables.build(found, None)


def test_apostrophes_are_compared_as_they_were_scored(tmp_path: Path) -> None:
    row = {"set": "dev", "id": "1", "reference": "I’ll go", "hypothesis": "i'll go"}
    file = tmp_path / "a.jsonl"
    for extra, wrong in ({}, False), ({"apostrophes": "strict"}, True):
        file.write_text(json.dumps(row | extra) + "\n")
        assert (read_results(file)["dev"].wer > 0) == wrong


def test_rates_without_utterances_have_no_p(tmp_path: Path) -> None:
    """Files of --output give both changes and nothing that needs pairs."""
    for name, wer in (("a", 0.2), ("b", 0.1)):
        row = {"wer": wer, "ci_low": wer - 0.01, "ci_high": wer + 0.01, "words": 10}
        (tmp_path / f"{name}.json").write_text(json.dumps({"test-clean": row}))
    results = {name: read_results(tmp_path / f"{name}.json") for name in "ab"}
    (difference,) = tables.build(results, None).differences
    assert difference.change_of_mean == pytest.approx(-0.5)
    assert difference.p is None and difference.interval is None


def test_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours stand beside the paper's, the best is bold, what has no place is named."""
    rng = np.random.default_rng(0)
    files = []
    for name, scale in (("dense", 6), ("omni-246m", 4), ("small", 8)):
        sets = {
            "cuts_test_clean": rng.integers(0, scale, 30).tolist(),
            "AMI-IHM": rng.integers(0, scale, 30).tolist(),
            "mine": [1],
        }
        files.append(f"{name}={write_lines(tmp_path / f'{name}.jsonl', sets)}")
    assert main(["tables", *files, "--table", "1"]) == 0
    captured = capsys.readouterr()
    assert "skipped: mine" in captured.err
    lines = captured.out.splitlines()
    head = "|  | dense, paper | dense, ours | switch-246m, paper | switch-246m, ours |"
    assert lines[2].startswith(head)
    (clean,) = [line for line in lines if line.startswith("| LibriSpeech clean |")]
    cells = [cell.strip() for cell in clean.strip("|").split("|")]
    assert (cells[1], cells[3], cells[4], cells[5]) == ("4.2", "3.9", "–", "3.3")
    assert cells[6].startswith("**") and cells[7] == "–"
    (mean,) = [line for line in lines if line.startswith("| mean |")]
    assert (
        mean.split("|")[2].strip() == "11.4"
    )  # 11.35 = (18.5 + 4.2) / 2, as only these two are ours
    assert any(line.startswith("| omni-246m against dense | 2 |") for line in lines)
    assert any(line.startswith("| paper: omni-246m against dense-140m | 2 |") for line in lines)


def test_systems_as_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables II and III have a row per system; each says whose figure it is."""
    file = write_lines(tmp_path / "omni-290m.jsonl", {"test-clean": [1, 0], "test-other": [2, 2]})
    assert main(["tables", file, "--table", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "|  | LibriSpeech clean | LibriSpeech other | mean |"
    assert "| omni-290m, paper | 3.7 | 7.9 | 5.8 |" in lines
    assert any(line.startswith("| omni-290m, ours | 5.0 (0.0-10.0)") for line in lines)


def test_latex_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LaTeX escapes per cent; JSON holds fractions and both changes; --output writes a file."""
    files = [
        write_lines(tmp_path / f"{name}.jsonl", {"test-clean": wrong})
        for name, wrong in (("dense", [3, 2, 4]), ("omni", [1, 2, 1]))
    ]
    assert main(["tables", *files, "--table", "4", "--format", "latex"]) == 0
    latex = capsys.readouterr().out
    typeset = "".join(line for line in latex.splitlines() if not line.startswith("%"))
    assert r"\toprule" in typeset and r"\%" in typeset and "%" not in typeset.replace(r"\%", "")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    assert main(["tables", *files, "--table", "4", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["systems"]["omni"]["published"]["test-clean"] == pytest.approx(0.02)
    assert values["systems"]["omni"]["ours"]["test-clean"]["wer"] == pytest.approx(4 / 30)
    assert values["mean_sets"] == ["test-clean"]
    assert values["differences"][0]["change_of_mean"] == pytest.approx(4 / 9 - 1)
    target = tmp_path / "made" / "table.md"
    assert main(["tables", *files, "--output", str(target)]) == 0
    assert capsys.readouterr().out == "" and "test-clean" in target.read_text()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.jsonl", "holds no results"),
        ("{}", "a.json", "holds no results"),
        ("hello", "a.jsonl", "is no result of omnirouter evaluate"),
        ('{"set": "x"}\n', "a.jsonl", "is no result of omnirouter evaluate"),
        ("[1]", "a.json", "is no result of omnirouter evaluate"),
        ('{"x": {"wer": 0.1}}', "a.json", "is no result of omnirouter evaluate"),
        ('{"set": "x", "id": "1", "reference": "a", "hypothesis": "a"}', "a.jsonl", "no set named"),
    ],
)
def test_bad_files(
    tmp_path: Path, content: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, status 2."""
    (tmp_path / name).write_text(content)
    assert main(["tables", str(tmp_path / name), "--table", "1"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path / "omni.jsonl", {"test-clean": [1]})
    assert main(["tables", file, "--table", "5"]) == 2
    assert "table: 0 for none of the paper's, or 1 to 4, not 5" in capsys.readouterr().err
    assert main(["tables", file, f"omni={file}"]) == 2
    assert "omni: two results have this name" in capsys.readouterr().err
    assert main(["tables", str(tmp_path / "none.json")]) == 2
    assert named_files(["x=a/b.json", "c/d.jsonl"]) == {
        "x": Path("a/b.json"),
        "d": Path("c/d.jsonl"),
    }


def test_files_that_are_there_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    file = write_lines(folder / "omni.jsonl", {"test-clean": [1]})
    assert named_files([file]) == {"omni": Path(file)}
    assert named_files([f"ours={folder}"]) == {"ours": folder}


def test_texts_may_hold_line_separators(tmp_path: Path) -> None:
    file = tmp_path / "omni.jsonl"
    row = {"set": "dev", "id": "1", "reference": "red \u2028house", "hypothesis": "red\x85 house"}
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_results(file)["dev"].utterances["1"][:2] == (0, 2)


def test_a_folder_of_cuts_is_evaluated_with_one_command(
    checkpoints: dict[str, Checkpoint],
    manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a folder of manifests to a table; listings are passed over, an empty folder is named."""
    own = checkpoints["omni"]
    model = tmp_path / "model"
    state = own.model.state_dict()
    save_checkpoint(model, model_state=state, config=own.config, tokenizer=own.tokenizer)
    folder = tmp_path / "cuts"
    folder.mkdir()
    for listing in ("rejected_test", "rejected", "wer_test", "failed", ".hidden"):
        (folder / f"{listing}.jsonl").write_text('{"id": "a", "reason": "silent"}\n')
    assert main(["evaluate", str(model), str(folder)]) == 2
    assert "the folder holds no manifest" in capsys.readouterr().err
    rows = [json.loads(line) for line in manifest.read_text().splitlines()[:2]]
    for name in ("cuts_test-clean", "test-other"):
        lines = [
            json.dumps(row | {"audio_filepath": str(manifest.parent / row["audio_filepath"])})
            for row in rows
        ]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "notes.txt").write_text("not a manifest")
    found = str(tmp_path / "omni.jsonl")
    assert main(["evaluate", str(model), str(folder), "--hypotheses", found]) == 0
    assert main(["tables", found, "--table", "4", "--json"]) == 0
    values = json.loads(capsys.readouterr().out.partition("{\n")[2].join(["{\n", ""]))
    assert set(values["systems"]["omni"]["ours"]) == {"test-clean", "test-other"}
