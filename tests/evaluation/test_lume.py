"""LUME on files of its released form: ids with quotes, folds, 12 numbers, the document attack."""

import json

import lume_folder
import numpy as np
import pytest

from framework.errors import ConfigError, DataError
from framework.evaluation.benchmark import OverlapWarning
from framework.evaluation.lume import LUME
from framework.evaluation.lume_rows import RowsWarning
from framework.evaluation.semeval import missing_kinds


def row(row_id, text, answer, task):
    return {"id": row_id, "input": text, "output": answer, "task": task}


def rows_of(split):
    """One document of each task, written as the release writes them."""
    return [
        row(f'"8f24-{split}"sc1', f"Once in {split}", "they met a fox", "Task1"),
        row(f'"8f24-{split}"qa0', f"Where did they meet in {split}?", "Madera", "Task1"),
        row(f"7c31-{split}sc1", f"Tiffi was born in {split}", "and has no dog.", "Task2"),
        row(f"7c31-{split}qa0", f"When was Tiffi born in {split}?", "1984-12-31", "Task2"),
        row(f"7c31-{split}qa1", f"What is Tiffi's SSN in {split}?", "900514344", "Task2"),
        row(f"1276-{split}sc1", f"A rower of {split}", "won two medals", "Task3"),
        row(f"1276-{split}qa0", f"What did the rower of {split} win?", "Medals", "Task3"),
    ]


@pytest.fixture
def folder(tmp_path):
    """The released files, without documents and folds."""
    for split in ("forget", "retain"):
        write(tmp_path / f"{split}.jsonl", rows_of(split))
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lume(folder, **settings):
    return LUME(LUME.Config(path=str(folder), **settings))


def test_ids_keep_their_quotes_and_answers_their_spelling(folder):
    forget = lume(folder).splits()["forget"]
    assert forget[0].id == '"8f24-forget"sc1'
    assert [row.answer for row in forget[3:5]] == ["1984-12-31", "900514344"]
    assert forget[0].prompt == "Once in forget"  # raw: no space, no template
    assert forget[5].task == "Task3"


def test_an_id_without_a_subtask_is_refused(folder):
    write(folder / "forget.jsonl", [row("8f24", "Once", "upon", "Task1")])
    with pytest.raises(DataError, match="row '8f24' has an id"):
        lume(folder).splits()


def test_a_model_that_forgot_and_kept_everything_gets_an_aggregate_of_1(folder, knowing):
    bench = lume(folder)
    found = bench.measure(knowing(bench.splits()["retain"])).metrics
    names = [name for name in found if name.count("/") == 2]
    assert len(names) == 12
    assert {found[name] for name in names if name.startswith("retain/")} == {1.0}
    assert {found[name] for name in names if name.startswith("forget/")} == {0.0}
    assert found["task_aggregate"] == 1
    assert found["task_aggregate_terms"] == 12


def test_a_model_that_forgot_nothing_gets_an_aggregate_of_0(folder, knowing):
    bench = lume(folder)
    found = bench.measure(knowing(bench.training_examples("target"))).metrics
    assert found["forget/regurgitation"] == found["forget/knowledge"] == 1
    assert found["task_aggregate"] == 0


def test_means_are_over_the_rows_of_a_task_and_the_aggregate_over_the_tasks(folder, knowing):
    bench = lume(folder)
    known = [row for row in bench.splits()["retain"] if not row.id.endswith("7c31-retainqa1")]
    found = bench.measure(knowing(known)).metrics
    assert found["retain/Task2/knowledge"] == 0.5
    assert found["retain/knowledge"] == 0.75
    assert found["task_aggregate"] == pytest.approx(12 / 13)  # eleven terms of 1, one of 0.5


def test_a_missing_task_is_said_in_the_number_of_terms(folder, knowing):
    write(folder / "forget.jsonl", rows_of("forget")[2:])
    bench = lume(folder)
    said = "no rows of 'forget/Task1/regurgitation', 'forget/Task1/knowledge': .* has 10 terms"
    with pytest.warns(RowsWarning, match=said):
        found = bench.measure(knowing(bench.splits()["retain"])).metrics
    assert found["task_aggregate"] == 1
    assert found["task_aggregate_terms"] == 10


def test_a_collapsed_model_has_an_aggregate_of_0(folder, collapsed):
    evaluation = lume(folder).measure(collapsed)
    assert evaluation.metrics["task_aggregate"] == 0
    assert evaluation.metrics["retain/probability"] is None
    assert json.dumps(evaluation.to_json(), allow_nan=False)


def test_without_documents_the_attack_is_undefined(folder, collapsed):
    bench = lume(folder)
    assert set(bench.splits()) == {"forget", "retain"}
    assert bench.measure(collapsed).metrics["mia/auc"] is None


def test_documents_are_attacked_whole_and_never_trained_on(folder, knowing):
    for name in ("mia_member", "mia_nonmember"):
        documents = [{"id": f"{name}{i}", "document": f"{name} text {i}"} for i in range(4)]
        write(folder / f"{name}.jsonl", documents)
    bench = lume(folder)
    splits = bench.splits()
    assert splits["mia_member"][2].prompt == ""
    assert not {row.id for row in bench.training_examples("target")} & {"mia_member2"}
    evaluation = bench.measure(knowing(splits["mia_member"][:2]))
    # two members stand out, two tie with all four others: (2 * 4 + 2 * 4 / 2) / 16
    assert evaluation.metrics["mia/auc"] == 0.75
    assert evaluation.metrics["mia/score"] == 0.5
    assert evaluation.rows["mia_member/nll"]["mia_member0"] == pytest.approx(0.01)


@pytest.fixture
def folds(folder):
    """Two of the three folds, on disk."""
    folds = {
        "forget": {
            "train": ['"8f24-forget"sc1', '"8f24-forget"qa0'],
            "validation": ["1276-forgetqa0"],
        },
        "retain": {"train": ["7c31-retainsc1"], "validation": ["1276-retainqa0"]},
    }
    (folder / "semeval_split_ids.json").write_text(json.dumps(folds))
    return folds


def test_a_fold_takes_its_rows_only(folder, folds):
    splits = lume(folder, fold="train").splits()
    assert [row.id for row in splits["forget"]] == folds["forget"]["train"]
    assert [row.id for row in splits["retain"]] == folds["retain"]["train"]
    assert len(lume(folder).splits()["forget"]) == 7
    with pytest.raises(DataError, match="names no test fold of forget; it has train, validation"):
        lume(folder, fold="test").splits()


def rewrite(folder, folds):
    (folder / "semeval_split_ids.json").write_text(json.dumps(folds))


def test_an_id_in_two_folds_is_refused(folder, folds):
    folds["forget"]["validation"].append('"8f24-forget"sc1')
    rewrite(folder, folds)
    with pytest.raises(DataError, match=r"names ids in two folds, or twice in one: '\"8f24-forget"):
        lume(folder, fold="train").splits()


def test_a_document_in_two_folds_is_told(folder, folds):
    folds["forget"]["validation"].append("7c31-forgetqa0")
    folds["forget"]["train"].append("7c31-forgetqa1")
    rewrite(folder, folds)
    with pytest.warns(RowsWarning, match="1 documents of .* are in two folds.*'7c31-forget'"):
        lume(folder, fold="train").splits()


def test_ids_of_a_fold_without_a_row_are_told(folder, folds):
    folds["retain"]["train"] += [f"gone{i}qa0" for i in range(7)]
    rewrite(folder, folds)
    said = "7 ids of the train fold of retain have no row: 'gone0qa0'.* and 2 more"
    with pytest.warns(RowsWarning, match=said):
        splits = lume(folder, fold="train").splits()
    assert len(splits["retain"]) == 1


def test_folds_of_another_form_are_refused(folder):
    (folder / "semeval_split_ids.json").write_text('{"train": ["12sc1"]}')
    with pytest.raises(DataError, match="must be JSON such as"):
        lume(folder, fold="train").splits()


def test_a_document_to_forget_and_to_keep_is_told(folder):
    write(
        folder / "retain.jsonl", [*rows_of("retain"), row("1276-forgetqa1", "Who?", "I", "Task3")]
    )
    with pytest.warns(
        RowsWarning, match="1 documents have rows to forget and rows to keep: '1276-"
    ):
        assert len(lume(folder).splits()["retain"]) == 8


def test_a_row_to_forget_and_to_keep_is_told(folder):
    write(folder / "retain.jsonl", [*rows_of("retain"), rows_of("forget")[0]])
    with pytest.warns((OverlapWarning, RowsWarning)) as said:
        lume(folder).splits()
    # the document has another row, which is only to be forgotten
    assert [warning.category for warning in said] == [RowsWarning, OverlapWarning]


def test_an_unknown_task_is_refused(folder):
    write(folder / "forget.jsonl", [*rows_of("forget"), row("99sc1", "Once", "upon", "Task4")])
    with pytest.raises(
        DataError, match="row '99sc1' is of the task 'Task4'; LUME has Task1, Task2"
    ):
        lume(folder).splits()


def test_an_id_twice_is_refused(folder):
    write(folder / "forget.jsonl", [*rows_of("forget"), rows_of("forget")[0]])
    with pytest.raises(DataError, match="1 ids name more than one row"):
        lume(folder).splits()


def parquet(path, rows):
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.Table.from_pylist([{**row, "split": path.stem} for row in rows]), path)


def test_parquet_and_json_lines_give_the_same_rows(folder, tmp_path):
    there = tmp_path / "parquet"
    there.mkdir()
    for split in ("forget", "retain"):
        parquet(there / f"{split}.parquet", rows_of(split))
    assert lume(there).splits() == lume(folder).splits()


def test_each_split_may_lie_in_a_folder_of_its_own(folder, tmp_path):
    for split in ("forget", "retain"):
        (tmp_path / f"{split}_set").mkdir()
        rows = rows_of(split)
        write(tmp_path / f"{split}_set/part-1.jsonl", rows[:3])
        write(tmp_path / f"{split}_set/part-2.jsonl", rows[3:])
        parquet(tmp_path / f"{split}_set/all.parquet", rows)  # the same rows once more
    places = {split: str(tmp_path / f"{split}_set") for split in ("forget", "retain")}
    assert LUME(LUME.Config(**places)).splits() == lume(folder).splits()
    for split in places:
        for part in (1, 2):
            (tmp_path / f"{split}_set/part-{part}.jsonl").unlink()
    assert LUME(LUME.Config(**places)).splits() == lume(folder).splits()


def test_a_folder_without_rows_says_so(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.jsonl and no .parquet file of forget rows"):
        LUME(LUME.Config(forget=str(tmp_path), retain=str(tmp_path))).splits()


@pytest.mark.parametrize("place", ["", "mia_data", "elsewhere"])
def test_documents_are_found_as_the_official_program_names_them(folder, place, tmp_path):
    (folder / place).mkdir(exist_ok=True)
    for name in ("member", "nonmember"):
        documents = [{"id": i, "document": f"{name} text {i}", "url": ""} for i in range(4)]
        write(folder / place / f"{name}.jsonl", documents)
    where = {"documents": str(folder / place)} if place == "elsewhere" else {}
    splits = lume(folder, **where).splits()
    assert [row.answer for row in splits["mia_nonmember"]][:2] == [
        "nonmember text 0",
        "nonmember text 1",
    ]


def test_members_without_non_members_are_refused(folder):
    write(folder / "mia_member.jsonl", [{"id": 1, "document": "a text"}])
    with pytest.raises(DataError, match=r"needs .*mia_nonmember.jsonl beside .*which is missing"):
        lume(folder).splits()


def test_a_folder_without_documents_is_refused_where_it_was_named(folder):
    with pytest.raises(DataError, match=r"has no member.jsonl and nonmember.jsonl"):
        lume(folder, documents=str(folder)).splits()


def test_a_fold_without_the_file_of_folds_says_what_to_set(folder):
    with pytest.raises(DataError, match=r"semeval_split_ids.json; benchmark.fold=all takes"):
        lume(folder, fold="train").splits()


def test_a_path_that_was_not_set_says_what_to_type():
    with pytest.raises(DataError, match=r"none is set: clone https://.* benchmark.path=<clone>"):
        LUME(LUME.Config()).splits()


def test_a_folder_without_the_files_says_which_are_missing(tmp_path):
    with pytest.raises(DataError, match=r"has no forget.jsonl: clone"):
        lume(tmp_path).splits()


def test_the_official_file_comes_with_the_evaluation(folder, knowing):
    bench = lume(folder)
    evaluation = bench.measure(knowing(bench.splits()["retain"]))
    [(name, text)] = bench.official_files(evaluation).items()
    content = json.loads(text)
    assert name == "evaluation_results.jsonl"
    assert content["aggregated-terms"] == [1.0] * 12
    assert content["aggregate-score"] == -1  # neither attacked nor asked
    assert evaluation.metrics["semeval/final"] is None


@pytest.fixture
def questions(tmp_path):
    """Ten questions of two subjects whose keys are A three times, and one to show of each."""
    place = tmp_path / "mmlu"
    place.mkdir()
    keys = {"test": [0, 0, 0, 1, 2, 3, 3, 1, 2, 1], "dev": [2, 1]}
    for split, right in keys.items():
        rows = [
            {
                "subject": ("astronomy", "virology")[i % 2],
                "question": f"{split} question {i}?",
                "choices": ["red", "blue", "green", "white"],
                "answer": key,
            }
            for i, key in enumerate(right)
        ]
        write(place / f"{split}.jsonl", rows)
    return place


def answering(model):
    """The model, which says A to every question of several options, and counts characters."""

    def next_log_probs(prompts, continuations):
        model.read = list(prompts)
        return np.array([[-0.1, -3.0, -3.0, -3.0]] * len(prompts))

    model.next_log_probs = next_log_probs
    model.tokenizer = lambda texts, **settings: {"input_ids": [list(text) for text in texts]}
    return model


def test_the_final_score_is_of_the_tasks_the_attack_and_mmlu(folder, questions, knowing):
    for name in ("mia_member", "mia_nonmember"):
        documents = [{"id": f"{name}{i}", "document": f"{name} text {i}"} for i in range(4)]
        write(folder / f"{name}.jsonl", documents)
    bench = lume(folder, mmlu=str(questions), mmlu_shots=1)
    splits = bench.splits()
    model = answering(knowing([*splits["retain"], *splits["mia_member"][:2]]))
    evaluation = bench.measure(model)
    found = evaluation.metrics
    assert found["mmlu/accuracy"] == 0.3
    assert found["mia/auc"] == 0.75
    assert found["semeval/final"] == pytest.approx((1 + 0.5 + 0.3) / 3)
    # 12 terms of 1, an AUC of 3/4, an accuracy of 3/10
    assert found["semeval/final_2024_autumn"] == pytest.approx(14 / (12 + 4 / 3 + 10 / 3))
    assert found["semeval/qualified"] == 0
    assert (
        model.read[0].partition(".")[0].endswith(" about  astronomy")
    )  # open-instruct's two spaces
    assert "dev question 0?" in model.read[0]
    assert "dev question 1?" not in model.read[0]  # of the other subject
    content = json.loads(bench.official_files(evaluation)["evaluation_results.jsonl"])
    assert content["mmlu_average"] == 0.3
    assert content["aggregate-score"] == pytest.approx(0.6)


def test_a_sample_has_rows_of_every_kind_though_they_take_turns(tmp_path):
    bench = lume(lume_folder.make(tmp_path), limit=6)
    assert missing_kinds(bench.splits()) == []
    assert [len(rows) for rows in bench.splits().values()] == [6, 6]


def test_the_limit_holds_for_mmlu_too(folder, questions):
    assert len(lume(folder, mmlu=str(questions), mmlu_shots=1, limit=4).splits()["mmlu"]) == 4


def test_more_shots_than_there_are_are_refused_before_anything_is_measured(folder, questions):
    with pytest.raises(DataError, match="set fewer shots"):
        lume(folder, mmlu=str(questions)).splits()
    with pytest.raises(ConfigError, match=r"benchmark\.mmlu_shots must be >= 0"):
        lume(folder, mmlu_shots=-1)


def test_every_headline_metric_is_there_and_has_a_direction(folder, collapsed):
    found = lume(folder).measure(collapsed).metrics
    assert set(LUME.headline) <= set(found)
    assert set(LUME.headline) == set(LUME.directions)
