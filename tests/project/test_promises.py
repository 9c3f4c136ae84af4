"""Each promise of the README has a test that holds it, and that test is one of the quick ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)

SPLIT = "tests/exactness/test_split.py"
TILED = "tests/exactness/test_tiled.py"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v")
TILED_FAMILIES = ("llava_onevision", "internvl", "smolvlm")
LOGITS = "test_logits_from_the_store_are_those_of_the_whole_model"
TILED_LOGITS = "test_prompt_logits_and_tokens_from_the_store_are_those_of_the_whole_model"

# Section -> what it promises, in its own words where a point of a list has a name -> the test that holds it.
PROMISES = {
    "qsplit": {
        "answers are those of the unsplit model, token for token": f"{SPLIT}::test_greedy_tokens_from_the_store_are_those_of_the_whole_model",
        "without the picture": "tests/test_album.py::test_a_picture_of_the_album_is_asked_about_without_any_file",
        "without the vision weights": f"{SPLIT}::test_the_answering_process_had_nothing_of_the_vision_half",
        "what it was not made for is refused, with every reason": "tests/features/test_features.py::test_every_difference_is_listed",
        "run it again and only what is new is looked at": "tests/indexing/test_pipeline.py::test_the_second_run_does_nothing",
        "the same rows find similar pictures": "tests/search/test_engine.py::test_a_search_by_picture_needs_no_model",
        "the bundled checkpoint answers truly": "tests/mini/test_checkpoint.py::test_plain_transformers_gives_the_true_answer",
        "its card says how often": "tests/mini/test_checkpoint.py::test_the_card_is_what_the_evaluation_found",
        "the session runs": "tests/project/test_readme.py::test_the_python_sessions_run",
        "the first commands are there": "tests/project/test_readme.py::test_the_first_commands_are_those_of_the_makefile",
    },
    "Install": {
        "the wheel is complete": "tests/project/test_package.py::test_the_wheel_is_complete",
        "doctor tells what would fail": "tests/cli/test_main.py::test_doctor_tells_what_would_fail",
    },
    "Commands": {
        "every command is documented": "tests/cli/test_main.py::test_every_command_is_documented_in_the_readme",
        "the fields of --json are pinned": "tests/project/test_schemas.py::test_the_contracts_are_those_of_the_code",
        "exit codes": "tests/project/test_api.py::test_exit_codes_are_pinned",
        "what the first index used need not be repeated": "tests/cli/test_main.py::test_what_the_first_index_used_need_not_be_repeated",
        "status and duplicates need no model": "tests/cli/test_main.py::test_what_needs_no_model_imports_none",
        "a picture is named by its path": "tests/store/test_lookup.py::test_by_its_path",
        "by the end of its path": "tests/store/test_lookup.py::test_by_the_end_of_its_path",
        "by the first digits of its id": "tests/store/test_lookup.py::test_by_an_id_prefix",
        "formats": "tests/media/test_images.py::test_every_format_is_known_by_content",
        "orientation is honoured": "tests/media/test_images.py::test_orientation",
        "originals are never written": "tests/media/test_images.py::test_a_file_is_read_whole_and_left_as_it_was",
        "videos are known by their content": "tests/media/test_videos.py::test_every_container_is_known_by_its_content_and_read",
    },
    "The two halves": {
        "only the shards with vision weights are opened": "tests/models/test_checkpoint.py::test_the_other_halfs_file_is_not_even_opened",
        **{f"Families: {family}": f"{SPLIT}::{LOGITS}[{family}-bfloat16-cpu-2]" for family in FAMILIES},
        **{f"Families: {family}": f"{TILED}::{TILED_LOGITS}[{family}-bfloat16-cpu-2]" for family in TILED_FAMILIES},
        "Families: float32": f"{SPLIT}::{LOGITS}[qwen3_vl-float32-cpu-2]",
        "Dtype": "tests/models/test_checkpoint.py::test_a_dtype_that_the_text_config_alone_says_is_that_of_both_halves",
        "Strict": "tests/models/test_checkpoint.py::test_one_missing_tensor_is_an_error_that_names_it",
        "Strict: pickles": "tests/models/test_checkpoint.py::test_what_trainers_leave_beside_the_weights_is_never_opened",
        "Strict: remote code": "tests/models/test_checkpoint.py::test_remote_code_of_a_known_type_never_runs",
        "Identity": "tests/features/test_features.py::test_each_difference_is_refused_and_spelled_out",
        "Identity: settings in one file": "tests/models/test_checkpoint.py::test_settings_in_one_file_are_those_in_several",
        "Apart": "tests/models/test_splitting.py::test_the_halves_answer_as_the_whole",
        "Apart: transformers": "tests/models/test_splitting.py::test_a_plain_vision_class_loads_the_vision_folder",
        "Sizes": "tests/models/vision/test_encoder.py::test_sizes_mean_what_they_mean_in_a_message",
        "Videos": "tests/media/test_videos.py::test_an_answer_about_a_stored_video_is_that_of_the_whole_model",
        "Exact": f"{SPLIT}::test_features_of_the_vision_half_are_those_of_the_whole_model",
        "Exact: another attention": "tests/exactness/test_exact.py::test_what_another_attention_made_is_not_exact",
        "Exact: packed": "tests/models/vision/test_packing.py::test_packed_features_are_taken_and_not_exact",
        "Many questions": "tests/models/language/test_kv_cache.py::test_answers_together_are_those_of_each_alone",
        "Many questions: once": "tests/models/language/test_kv_cache.py::test_the_picture_is_computed_once_for_all_questions",
        "Choices": "tests/models/language/test_choice_scoring.py::test_probabilities_are_the_unsplit_models",
        "Devices": "tests/exactness/test_exact.py::test_devices_are_of_a_class",
    },
    "Answers from vLLM": {
        "answers come from a server": "tests/integrations/test_remote_language.py::test_answers_are_those_of_the_language_half",
        "another model is refused before anything else": "tests/integrations/test_remote_language.py::test_another_model_is_refused_before_anything_else_is_sent",
        "everything is checked before it is sent": "tests/integrations/test_remote_language.py::test_no_spoilt_row_reaches_the_server",
        "the key is never shown": "tests/integrations/test_remote_language.py::test_a_key_is_sent_and_never_said",
        "what no server has begun is sent again": "tests/integrations/test_remote_language.py::test_what_was_not_begun_is_sent_again",
        "chats are passed on": "tests/server/test_remote_scheduler.py::test_a_conversation_is_passed_on_whole",
    },
    "A vLLM that is sent pictures": {
        "features are found by the bytes of patches": "tests/integrations/test_feature_cache.py::test_what_was_indexed_is_found_by_its_patches",
        "what is found nowhere is kept": "tests/integrations/test_feature_cache.py::test_what_a_server_made_is_kept_once_and_found",
        "a store that cannot be read costs no answer": "tests/integrations/test_ec_scheduler.py::test_a_store_that_fails_costs_no_answer",
        "compact --served": "tests/integrations/test_feature_cache.py::test_what_a_server_put_is_no_orphan_until_it_is_old",
    },
    "Checks": {
        "each question of each picture": "tests/qa/test_checks.py::test_each_picture_gets_a_verdict_of_each_check",
        "only what is new is computed": "tests/qa/test_checks.py::test_what_was_computed_is_not_computed_again",
        "two policies come with it": "tests/qa/test_policy.py::test_the_policies_that_come_with_qsplit_can_be_read",
        "exit code 6": "tests/cli/test_main.py::test_check_tells_by_its_exit_code_whether_anything_was_flagged",
    },
    "Search": {
        "Terms": "tests/search/test_query_parser.py::test_terms_have_weights_and_signs",
        "Meaning, words or both": "tests/search/test_conditions.py::test_a_text_finds_its_picture",
        "Meaning, words or both: rerank": "tests/search/test_conditions.py::test_the_best_are_asked",
        "Conditions": "tests/search/test_filters.py::test_a_circle_holds_what_is_no_further_than_its_radius",
        "No good match": "tests/search/test_conditions.py::test_a_text_that_nothing_fits_finds_nothing_unless_all_are_asked_for",
        "Pages": "tests/search/test_conditions.py::test_pages_do_not_repeat_when_pictures_come_in_between",
    },
    "Duplicates": {
        "copies are found": "tests/duplicates/test_detector.py::test_every_copy_is_found_and_nothing_else",
        "bursts are similar": "tests/duplicates/test_detector.py::test_exposures_of_a_burst_are_similar_and_no_copies",
        "never again": "tests/duplicates/test_detector.py::test_pictures_that_were_kept_apart_can_be_let_together",
        "a new picture is compared with the album": "tests/duplicates/test_detector.py::test_a_new_picture_is_compared_with_the_album_alone",
        "which is kept": "tests/duplicates/test_detector.py::test_the_whole_picture_is_kept",
        "what the pixels do not say stays": "tests/duplicates/test_move_rules.py::test_files_of_the_same_pixels_that_hold_something_else_stay",
        "copies go by name only": "tests/duplicates/test_move_rules.py::test_copies_are_moved_only_where_their_kind_is_named",
        "a RAW is never moved": "tests/duplicates/test_move_rules.py::test_a_raw_is_never_moved",
        "a Live Photo stays whole": "tests/duplicates/test_move_rules.py::test_a_live_photo_stays_whole",
        "a crash loses nothing": "tests/duplicates/test_trash.py::test_a_crash_anywhere_loses_nothing",
        "undo overwrites nothing": "tests/duplicates/test_trash.py::test_nothing_is_overwritten_by_undo",
        "the journal is yours alone": "tests/cli/test_duplicates.py::test_a_journal_in_a_strangers_store_moves_and_removes_nothing",
    },
    "The service": {
        "The page": "tests/server/test_page.py::test_a_text_finds_its_picture_and_the_address_is_the_search",
        "The page: 100,000 pictures": "tests/server/test_page.py::test_a_hundred_thousand_pictures_are_scrolled_without_a_halt",
        "The page: by keyboard": "tests/server/test_page.py::test_the_page_is_worked_by_keys_alone",
        "OpenAI's API": "tests/server/test_chat.py::test_an_answer_is_that_of_the_command_line",
        "OpenAI's API: no address leads inside": "tests/server/test_remote_images.py::test_no_way_of_writing_it_leads_inside",
        "Many at once": "tests/server/test_scheduler.py::test_requests_that_join_and_leave_are_answered_as_alone",
        "Many at once: exact": "tests/server/test_scheduler.py::test_bits_of_an_exact_answer_are_the_unsplit_ones",
        "Its own": "tests/server/test_openapi.py::test_every_answer_is_declared",
        "Access": "tests/server/test_auth.py::test_nothing_is_told_without_a_key",
        "Access: read only": "tests/server/test_auth.py::test_a_key_that_reads_changes_nothing",
        "Strangers' bytes": "tests/server/test_sandbox.py::test_a_confined_process_can_do_little",
        "Halves apart": "tests/server/test_roles.py::test_what_one_process_has_seen_the_other_answers_about",
        "Operation": "tests/server/test_run.py::test_what_runs_is_answered_before_the_service_ends",
    },
    "The store": {
        "the sha256 is checked on each read": "tests/store/test_feature_store.py::test_a_flipped_payload_is_corrupt",
        "writers may race": "tests/store/test_feature_store.py::test_racing_processes_lose_and_repeat_nothing",
        "a newer schema is refused": "tests/store/test_feature_store.py::test_a_newer_store_is_refused",
        "an older one is brought up to date": "tests/store/test_upgrades.py::test_a_store_of_an_older_layout_is_indexed_into",
        "no payload is rewritten": "tests/store/test_migrations.py::test_no_payload_is_rewritten",
        "codecs": "tests/features/test_codecs.py::test_every_bit_comes_back",
        "loss is said": "tests/features/test_codecs.py::test_loss_is_never_passed_off_as_none",
        "what is away is asked about": "tests/indexing/test_pipeline.py::test_a_picture_whose_file_cannot_be_read_is_still_known",
        "compact removes no decision": "tests/maintenance/test_garbage.py::test_what_a_person_said_is_kept_though_the_pictures_are_gone",
        "forget and compact beside writers": "tests/maintenance/test_garbage.py::test_housekeeping_beside_writers_and_readers_loses_nothing",
        "a store from somebody else": "tests/store/test_strangers_stores.py::test_a_payload_at_an_address_is_refused",
        "no link is followed": "tests/store/test_layout.py::test_no_link_is_followed_by_housekeeping",
        "a crash at a write": "tests/indexing/test_crashes.py::test_a_run_that_is_cut_off_at_any_change_of_a_file",
        "a kill at random": "tests/indexing/test_crashes.py::test_a_store_whose_runs_are_killed_at_random",
        "flushed before it is acknowledged": "tests/store/test_durability.py::test_a_commit_is_flushed_before_it_is_acknowledged",
        "on S3 as in a folder": "tests/store/test_object_storage.py::test_an_album_is_the_same_rows_as_in_a_folder",
        "an endpoint that overwrites is refused": "tests/store/test_object_storage.py::test_an_endpoint_that_overwrites_is_refused_before_anything_is_written",
        "503": "tests/store/test_object_storage.py::test_an_endpoint_that_is_often_too_busy_changes_nothing",
        "no secret is told": "tests/store/test_object_storage.py::test_what_fails_tells_no_secret",
    },
    "On a Ray cluster": {
        "the rows are the same": "tests/cluster/test_index.py::test_the_rows_are_those_of_a_plain_run",
        "whoever dies loses nothing": "tests/cluster/test_index.py::test_a_worker_that_is_killed_and_a_node_that_leaves_lose_nothing",
        "what kills is quarantined": "tests/cluster/test_index.py::test_a_picture_that_kills_is_quarantined_and_the_others_are_there",
        "archives": "tests/cluster/test_index.py::test_an_archive_is_indexed_and_known_afterwards",
    },
    "Operation": {
        "bytes a picture": "tests/project/test_deploy.py::test_sizes_are_those_of_the_payloads",
        "manifests": "tests/project/test_deploy.py::test_a_manifest_is_what_kubernetes_takes",
    },
    "Measured": {
        "the figures are those of the results": "tests/benchmarks/test_benchmarks.py::test_the_readme_has_the_table_and_the_chart_of_the_results",
        "benchmarks check what they read": "tests/benchmarks/test_bench_memory.py::test_other_features_or_tokens_fail_the_verification",
    },
    "Licence": {
        "each photograph has its source": "tests/test_bundled.py::test_each_credit_is_complete_and_free",
    },
}  # fmt: skip
TESTS = [test for promises in PROMISES.values() for test in promises.values()]


class Collected:
    """What a run would take, by name."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.found = {item.nodeid for item in session.items}


@pytest.fixture(scope="module")
def quick() -> set[str]:
    """The tests that the files named here have in a run without options, with and without their parameters."""
    files = sorted({str(ROOT / test.partition("::")[0]) for test in TESTS})
    collected = Collected()
    # In this process, which in a whole run has loaded all of these files.
    options = ["--collect-only", "-qq", "-n0", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    assert pytest.main([*options, *files], plugins=[collected]) == pytest.ExitCode.OK
    return collected.found | {name.partition("[")[0] for name in collected.found}


def test_the_test_of_each_promise_is_a_quick_one(quick: set[str]) -> None:
    assert [test for test in TESTS if test not in quick] == []


def test_each_section_of_the_readme_has_its_promises_held() -> None:
    assert list(PROMISES) == re.findall(r"^#+ (.*)", README, re.MULTILINE)


def test_each_point_of_the_readme_has_its_promise_held() -> None:
    for section in re.split(r"^#+ ", README, flags=re.MULTILINE)[1:]:
        name = section.partition("\n")[0]
        held = {promise.partition(": ")[0] for promise in PROMISES[name]}
        assert set(re.findall(r"^- \*\*(.*?)\*\*", section, re.MULTILINE)) <= held, name
