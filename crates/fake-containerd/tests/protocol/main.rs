//! The stand-in over its socket, with raw clients. Some rules it shares with real containerds,
//! which run the same scenarios. Others are its own.

mod cri;
mod faults;
mod raw;
mod services;
mod snapshots;
mod strictness;

use fake_containerd::{Fake, FakeConfig};
use raw::Raw;

/// The emulated versions, including those of Debian.
const VERSIONS: [&str; 5] = ["1.6.20~ds1", "1.7.24~ds1", "2.1.9", "2.3.7", "2.4.2"];

/// Declares a test on the stand-in for each scenario. Also declares a function that runs all
/// scenarios on a real containerd.
macro_rules! shared {
    ($($module:ident::$scenario:ident)*) => {
        mod on_the_stand_in {
            $(#[tokio::test]
            async fn $scenario() {
                for version in super::VERSIONS {
                    let fake = super::emulating(version).await;
                    let raw = super::Raw::connect(fake.socket(), super::namespace(stringify!($module), "scenario")).await;
                    super::$module::$scenario(raw).await;
                }
            })*
        }

        /// Runs every scenario on one containerd, each in its own namespace. Names the scenarios
        /// that fail.
        async fn run_all(socket: &std::path::Path) {
            let tasks = tokio::task::LocalSet::new();
            let mut failed = Vec::new();
            $(
                let own = stringify!($scenario).replace('_', "-");
                let raw = Raw::connect(socket, namespace(stringify!($module), &own)).await;
                if tasks.run_until(tasks.spawn_local($module::$scenario(raw))).await.is_err() {
                    failed.push(stringify!($scenario));
                }
            )*
            assert_eq!(failed, [""; 0]);
        }
    };
}

/// CRI reads only one namespace.
fn namespace<'a>(module: &str, own: &'a str) -> &'a str {
    if module == "cri" { "k8s.io" } else { own }
}

shared! {
    services::opening_a_present_blob_says_so_and_leases_it
    services::a_commit_is_answered_twice
    services::a_half_close_repeats_the_last_answer
    services::a_commit_with_offset_zero_throws_everything_away
    services::a_commit_without_any_promise_stores_the_empty_blob
    services::an_empty_blob_needs_no_data
    services::a_small_blob_fits_into_one_message
    services::a_digest_mismatch_keeps_the_ingest_until_it_is_aborted
    services::a_total_that_is_not_reached_fails_the_commit
    services::a_write_goes_on_where_the_last_one_ended_or_starts_again
    services::an_interrupted_write_resumes_with_the_digest_of_what_is_there
    services::another_total_starts_again_without_truncating
    services::a_ref_belongs_to_one_stream
    services::the_first_message_names_a_ref
    services::content_of_another_namespace_is_adopted_without_a_byte
    services::content_of_another_size_is_not_adopted
    services::a_blob_that_came_meanwhile_is_leased_only_if_the_commit_expects_nothing
    services::calls_need_a_namespace
    services::writing_needs_the_lease_to_exist_and_reading_does_not
    services::a_commit_fails_when_its_lease_is_gone
    services::blob_labels_change_by_mask
    services::a_label_has_4096_bytes_at_most
    services::a_record_is_created_once_and_needs_no_content
    services::a_record_must_be_valid
    services::records_change_by_mask
    services::records_are_deleted_by_name
    services::records_are_filtered
    services::what_nothing_holds_is_collected
    services::a_record_holds_what_gc_labels_reach
    services::a_lease_holds_what_gc_labels_reach_unless_it_is_flat
    services::an_expired_lease_holds_nothing
    services::references_back_to_a_record_hold_from_2_2_on
    services::a_blob_holds_an_expired_record
    services::ingests_live_as_long_as_their_lease
    services::leases_are_listed_and_refused_like_everything_else
    services::resources_are_added_before_they_exist_if_their_type_is_known
    services::messages_have_16_mib_at_most
    services::blobs_are_read_in_ranges_and_pieces
    services::blobs_are_listed_whole
    services::a_deleted_blob_is_adopted_again_until_it_is_collected
    services::malformed_digests_are_refused
    services::sha512_is_taken_from_2_3_on_and_a_mismatch_before
    services::the_first_write_makes_the_namespace
    services::events_of_records_reach_subscribers
    services::commits_are_events_from_2_1_on_and_deletions_everywhere
    services::a_lease_holds_records_from_2_0_on
    services::a_record_may_expire_from_2_0_on
    services::a_deletion_may_name_the_target
    services::write_answers_repeat_what_a_stat_was_told
    snapshots::a_layer_is_prepared_applied_and_named
    snapshots::a_target_that_is_there_is_leased_and_not_prepared
    snapshots::a_key_is_used_once
    snapshots::a_parent_is_a_committed_snapshot
    snapshots::a_name_is_given_once_and_the_loser_is_still_there
    snapshots::what_is_not_there_is_not_found_and_said_in_these_words
    snapshots::what_stands_on_a_snapshot_keeps_it
    snapshots::snapshots_live_as_long_as_a_lease_or_a_labelled_config
    snapshots::a_lease_holds_a_snapshot_and_those_below
    snapshots::what_becomes_of_snapshots_is_told
    snapshots::layers_are_uncompressed_as_their_type_says
    snapshots::layers_that_cannot_be_unpacked_are_refused_with_a_reason
    cri::cri_adopts_a_record_under_its_id
    cri::cri_finds_a_digest_only_under_its_own_record
    cri::cri_does_not_find_names_that_are_not_normalised
    cri::cri_reports_pins_where_it_honours_them
    cri::cri_adopts_a_moved_record_only_when_its_label_is_cleared
    cri::cri_removes_every_record_of_an_image
    cri::cri_picks_the_manifest_for_its_platform
}

async fn emulating(version: &str) -> Fake {
    Fake::start(FakeConfig {
        version: version.to_owned(),
        ..Default::default()
    })
    .await
}

mod on_containerd {
    use lab::{Generation, Options};

    async fn run(generation: Generation) {
        let Some(containerd) = lab::shared::own(generation, &Options::default()) else {
            return;
        };
        super::run_all(&containerd.socket()).await;
    }

    #[tokio::test]
    async fn the_same_scenarios_hold_on_1_6() {
        run(Generation::V1_6).await;
    }

    #[tokio::test]
    async fn the_same_scenarios_hold_on_1_7() {
        run(Generation::V1_7).await;
    }

    #[tokio::test]
    async fn the_same_scenarios_hold_on_2_1() {
        run(Generation::V2_1).await;
    }

    #[tokio::test]
    async fn the_same_scenarios_hold_on_2_3() {
        run(Generation::V2_3).await;
    }
}
