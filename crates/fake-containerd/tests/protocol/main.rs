//! The stand-in over its socket, with raw clients: the rules it shares with containerd, which the real ones are held to as
//! well, and the rules of its own.

mod raw;
mod scenarios;

use fake_containerd::{Fake, FakeConfig};
use raw::Raw;

/// The versions that are emulated, and that Debian has.
const VERSIONS: [&str; 3] = ["1.6.20~ds1", "1.7.24~ds1", "2.1.9"];

/// Declares a test on the stand-in for each scenario, and the list for the real ones.
macro_rules! shared {
    ($($scenario:ident)*) => {
        mod on_the_stand_in {
            $(#[tokio::test]
            async fn $scenario() {
                for version in super::VERSIONS {
                    let fake = super::emulating(version).await;
                    let raw = super::Raw::connect(fake.socket(), "scenario").await;
                    super::scenarios::$scenario(raw).await;
                }
            })*
        }

        /// Runs every scenario on one containerd, each in a namespace of its own, and names those that fail.
        async fn run_all(socket: &std::path::Path) {
            let mut failed = Vec::new();
            $(
                let raw = Raw::connect(socket, &stringify!($scenario).replace('_', "-")).await;
                if tokio::spawn(scenarios::$scenario(raw)).await.is_err() {
                    failed.push(stringify!($scenario));
                }
            )*
            assert_eq!(failed, [""; 0]);
        }
    };
}

shared! {
    opening_a_present_blob_says_so_and_leases_it
    a_commit_is_answered_twice
    a_half_close_repeats_the_last_answer
    a_commit_with_offset_zero_throws_everything_away
    a_commit_without_any_promise_stores_the_empty_blob
    an_empty_blob_needs_no_data
    a_small_blob_fits_into_one_message
    a_digest_mismatch_keeps_the_ingest_until_it_is_aborted
    a_total_that_is_not_reached_fails_the_commit
    a_write_goes_on_where_the_last_one_ended_or_starts_again
    an_interrupted_write_resumes_with_the_digest_of_what_is_there
    another_total_starts_again_without_truncating
    a_ref_belongs_to_one_stream
    the_first_message_names_a_ref
    content_of_another_namespace_is_adopted_without_a_byte
    content_of_another_size_is_not_adopted
    a_blob_that_came_meanwhile_is_leased_only_if_the_commit_expects_nothing
    calls_need_a_namespace
    writing_needs_the_lease_to_exist_and_reading_does_not
    a_commit_fails_when_its_lease_is_gone
    blob_labels_change_by_mask
    a_label_has_4096_bytes_at_most
    a_record_is_created_once_and_needs_no_content
    a_record_must_be_valid
    records_change_by_mask
    records_are_deleted_by_name
    records_are_filtered
    what_nothing_holds_is_collected
    a_record_holds_what_gc_labels_reach
    a_lease_holds_what_gc_labels_reach_unless_it_is_flat
    an_expired_lease_holds_nothing
    ingests_live_as_long_as_their_lease
    leases_are_listed_and_refused_like_everything_else
    resources_are_added_before_they_exist_if_their_type_is_known
    messages_have_16_mib_at_most
    blobs_are_read_in_ranges_and_pieces
    blobs_are_listed_whole
    a_deleted_blob_is_adopted_again_until_it_is_collected
    malformed_digests_are_refused
    sha512_is_a_mismatch_before_2_3
    the_first_write_makes_the_namespace
    events_of_records_reach_subscribers
}

async fn emulating(version: &str) -> Fake {
    Fake::start(FakeConfig {
        version: version.to_owned(),
        ..Default::default()
    })
    .await
}

mod on_containerd {
    use xtask::{Containerd, Generation, Options};

    async fn run(generation: Generation) {
        if !xtask::generations().contains(&generation) {
            println!("left out: this machine has no containerd of this generation");
            return;
        }
        let options = Options {
            cri: false,
            ..Default::default()
        };
        let containerd = Containerd::start(generation, &options).expect("a private containerd starts");
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
    async fn the_same_scenarios_hold_on_2_x() {
        run(Generation::V2).await;
    }
}
